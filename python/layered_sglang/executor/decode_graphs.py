"""Decode rows through any range of layers by CUDA graph replays, one graph a layer.

SGLang captures the whole decode step in one graph per batch size. Beside those, which serve every
iteration without a cohort, this captures each layer on its own, so that the layers before and after
the active layer group are a few microseconds of host time each, instead of a millisecond.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner.shape_key import ShapeKey

from layered_sglang.executor.cohort_state import CarriedRows
from layered_sglang.executor.layer_range import LayerRangeModel
from layered_sglang.scheduling import LayerGroup

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

#: Where SGLang's composed attention backends have those that decode.
INNER_BACKENDS = ("decode_backend", "full_attn_backend", "linear_attn_backend")


class PlannedByGraphs:
    """What an attention backend holds of the batch that it planned, for layers that are no replays.

    Some backends (triton, flashinfer) only refill the buffers that captured kernels read when a batch is
    loaded for replay: their ``forward_metadata`` is still that of the batch planned last, of another
    size, and attention that is launched (:class:`MixedAttention`) would read it.
    """

    def __init__(self, attention: AttentionBackend) -> None:
        self._backends = _backends_in(attention)
        self._kept: dict[int, list[Any]] = {}  # by batch size

    def now(self) -> list[Any]:
        """What each backend holds."""
        return [backend.forward_metadata for backend in self._backends]

    def keep(self, size: int) -> None:
        """Just planned: what graphs of this batch size read."""
        self._kept[size] = self.now()

    def renew(self, before: list[Any], size: int) -> None:
        """A batch was loaded for replay by graphs of ``size``. Backends that still hold what they did
        ``before`` get what describes it."""
        for backend, old, kept in zip(self._backends, before, self._kept[size], strict=True):
            if backend.forward_metadata is old:
                backend.forward_metadata = kept


def _backends_in(attention: AttentionBackend) -> list[Any]:
    """Those of several in one (decode apart from prefill, linear apart from full attention) that hold
    metadata."""
    inner = [getattr(attention, name, None) for name in INNER_BACKENDS]
    found = [backend for one in inner if one is not None for backend in _backends_in(one)]
    return found or ([attention] if hasattr(attention, "forward_metadata") else [])


class DecodeGraphRows(DecodeCudaGraphRunner):
    """SGLang's decode graph runner with a graph per layer; a :class:`DecodeRows`.

    Batch sizes, static inputs, padding, attention metadata and the memory pool are SGLang's. Between
    two graphs a row's activations are in ``_hidden`` and ``_residual``, the same for all batch sizes.

    Args:
        model_runner: SGLang's, after it captured its own graphs.
        model: its model, by layer ranges.
        attention: a backend instance of its own: metadata buffers belong to the captured graphs.
    """

    def __init__(
        self, model_runner: ModelRunner, model: LayerRangeModel, attention: AttentionBackend
    ) -> None:
        self._model = model
        self._rows: dict[int, ForwardBatch] = {}  # by batch size: static inputs
        self._graphs: dict[int, list[Any]] = {}  # by batch size: one a layer
        self._logits: dict[int, LogitsProcessorOutput] = {}
        self._planned = PlannedByGraphs(attention)
        super().__init__(model_runner, attn_backend=attention)  # captures

    def capture(self) -> None:
        config = self.model_runner.model_config
        with torch.device(self.device):
            self._hidden = torch.zeros(self.max_bs, config.hidden_size, dtype=config.dtype)
            self._residual = torch.zeros_like(self._hidden)
        super().capture()

    def capture_one_shape(self, size: int, forward: Any, *args: Any, **kwargs: Any) -> None:
        rows, attention, _ = self.capture_prepare(size)
        self._rows[size] = rows
        with forward_context(ForwardContext(attn_backend=attention)):
            attention.init_forward_metadata_out_graph(rows, in_capture=True)
        self._planned.keep(size)
        keys = [ShapeKey(size, variant_label=f"layer {i}") for i in range(self._model.num_layers)]
        for layer, key in enumerate(keys):
            self.backend.capture_one(key, partial(self._run_layer, layer, rows))
        self._graphs[size] = [self.backend._graphs[key] for key in keys]
        self._logits[size] = self.backend._outputs[keys[-1]]

    def _run_layer(self, layer: int, rows: ForwardBatch) -> LogitsProcessorOutput | None:
        carried = None if layer == 0 else self._carried(rows.batch_size)
        layers = LayerGroup(layer, layer + 1)
        out = self._model.run(layers, rows, carried, self.attn_backend)
        if isinstance(out, torch.Tensor):
            return self._model.logits(rows, out)
        self._carried(rows.batch_size).copy_from(out)
        return None

    def _carried(self, size: int) -> CarriedRows:
        return CarriedRows(self._hidden[:size], self._residual[:size])

    # --- an iteration -----------------------------------------------------------------------------

    def begin(self, decode: ForwardBatch) -> ForwardBatch:
        before = self._planned.now()
        self.load_batch(decode)
        self._planned.renew(before, self.bs)
        rows = self._rows[self.bs]
        self.attn_backend.init_forward_metadata_in_graph(rows)
        return rows

    def before(self, end: int) -> CarriedRows:
        for graph in self._graphs[self.bs][:end]:
            graph.replay()
        return self._carried(self.bs)

    def after(self, start: int, carried: CarriedRows) -> LogitsProcessorOutput:
        self._carried(self.bs).copy_from(carried)
        for graph in self._graphs[self.bs][start:]:
            graph.replay()
        # NOTE: the buffer is shared by all graphs; the sampler reads it before the next replay.
        logits = self._logits[self.bs].next_token_logits
        assert logits is not None
        return LogitsProcessorOutput(next_token_logits=logits[: self.raw_bs])
