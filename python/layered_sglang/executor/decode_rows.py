"""Decode rows outside the active layer group: through the layers before it, and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from layered_sglang.executor.cohort_state import CarriedRows
from layered_sglang.executor.layer_range import LayerRangeModel
from layered_sglang.scheduling import LayerGroup

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class DecodeRows(Protocol):
    """How decode rows pass the layers that the cohort does not run in this iteration.

    Called in this order, once an iteration: ``begin``, ``before``, ``after`` (not ``after`` when the
    active layer group holds the last layer).
    """

    def begin(self, decode: ForwardBatch) -> ForwardBatch:
        """Plan attention for ``decode``; returns its rows as the active layer group must run them,
        which may be padded at the end."""

    def before(self, end: int) -> CarriedRows:
        """Run layers ``0 … end - 1``; ``end`` is at least 1."""

    def after(self, start: int, carried: CarriedRows) -> LogitsProcessorOutput:
        """Run layers from ``start`` to the last; logits of the rows without padding."""


class EagerDecodeRows:
    """Layer by layer, each kernel launched by the host. For what no graph was captured for."""

    def __init__(self, model: LayerRangeModel, attention: AttentionBackend) -> None:
        self._model = model
        self._attention = attention
        self._rows: ForwardBatch | None = None

    def begin(self, decode: ForwardBatch) -> ForwardBatch:
        self._attention.init_forward_metadata(decode)
        self._rows = decode
        return decode

    def before(self, end: int) -> CarriedRows:
        assert self._rows is not None
        out = self._model.run(LayerGroup(0, end), self._rows, None, self._attention)
        assert isinstance(out, CarriedRows)
        return out

    def after(self, start: int, carried: CarriedRows) -> LogitsProcessorOutput:
        rows, self._rows = self._rows, None
        assert rows is not None
        layers = LayerGroup(start, self._model.num_layers)
        hidden = self._model.run(layers, rows, carried, self._attention)
        assert isinstance(hidden, torch.Tensor)
        return self._model.logits(rows, hidden)
