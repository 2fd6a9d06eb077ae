"""One iteration: decode rows through every layer, cohort rows through the active layer group.

::

    decode rows   [0 ────── s)   [s ═ active layer group ═ e)   [e ────── L) → logits
    cohort rows                   └─ join here, leave here ─┘    (logits only when e = L)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from layered_sglang.executor.architectures import Architecture
from layered_sglang.executor.cohort_state import CarriedRows, CohortState
from layered_sglang.executor.layer_range import LayerRangeModel
from layered_sglang.executor.mixed_attention import MixedAttention
from layered_sglang.scheduling import LayerGroup

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


@dataclass(frozen=True)
class IterationLogits:
    """``decode`` is ``None`` when nobody decodes, ``cohort`` until the cohort's last layer ran."""

    decode: LogitsProcessorOutput | None
    cohort: LogitsProcessorOutput | None


class LayerGroupExecutor:
    """Runs iterations that have a cohort in them, on the forward stream, without waiting for the GPU.

    Owns two attention backend instances beside the model runner's (whose metadata buffers belong to
    the captured decode graphs): one planned for the cohort in flight, one for the decode rows.
    """

    def __init__(self, model_runner: ModelRunner, architecture: Architecture) -> None:
        self.model = LayerRangeModel(model_runner.model, architecture)
        self.attention = MixedAttention(
            cohort=model_runner._get_attention_backend(init_new_workspace=True),
            decode=model_runner._get_attention_backend(init_new_workspace=True),
        )

    def run(
        self, decode: ForwardBatch | None, state: CohortState, layers: LayerGroup
    ) -> IterationLogits:
        """Run the cohort of ``state`` through ``layers`` and, if given, ``decode`` through all layers.

        ``state.carried`` moves on to the end of ``layers``; after the model's last layer it is
        ``None`` and the cohort's logits are in the result.
        """
        cohort = state.forward_batch
        assert cohort is not None and (state.carried is None) == (layers.start == 0)
        if not state.planned:
            self.attention.cohort.init_forward_metadata(cohort)
            state.planned = True
        if decode is None:
            out = self.model.run(layers, cohort, state.carried, self.attention.cohort)
            return IterationLogits(None, self._leave(state, cohort, out))
        self.attention.decode.init_forward_metadata(decode)
        return self._run_merged(decode, cohort, state, layers)

    def _run_merged(
        self, decode: ForwardBatch, cohort: ForwardBatch, state: CohortState, layers: LayerGroup
    ) -> IterationLogits:
        num_layers, n = self.model.num_layers, cohort.input_ids.shape[0]
        rows: CarriedRows | torch.Tensor | None = None
        if layers.start > 0:
            before = LayerGroup(0, layers.start)
            rows = self.model.run(before, decode, None, self.attention.decode)
            assert isinstance(rows, CarriedRows) and state.carried is not None
            rows = CarriedRows.cat(state.carried, rows)
            state.carried = None  # the joined copy replaces it

        self.attention.set_rows(cohort, decode)
        try:
            rows = self.model.run(layers, merge_inputs(cohort, decode), rows, self.attention)
        finally:
            self.attention.set_rows(None, None)

        if isinstance(rows, torch.Tensor):  # both went through the last layer
            return IterationLogits(
                self.model.logits(decode, rows[n:]), self._leave(state, cohort, rows[:n])
            )
        state.carried = rows.rows(0, n)
        after = LayerGroup(layers.end, num_layers)
        hidden = self.model.run(after, decode, rows.rows(n), self.attention.decode)
        assert isinstance(hidden, torch.Tensor)
        return IterationLogits(self.model.logits(decode, hidden), None)

    def _leave(
        self, state: CohortState, cohort: ForwardBatch, out: CarriedRows | torch.Tensor
    ) -> LogitsProcessorOutput | None:
        """Keep the cohort's rows for its next layer group, or turn its last ones into logits."""
        if isinstance(out, CarriedRows):
            state.carried = out
            return None
        state.carried = None
        return self.model.logits(cohort, out)


def merge_inputs(cohort: ForwardBatch, decode: ForwardBatch) -> ForwardBatch:
    """Inputs of the active layer group: cohort rows first, decode rows behind them.

    Layers read these per-token fields; what is per request stays with the two parts, which attention
    reads (:class:`MixedAttention`).
    """
    merged = dataclasses.replace(
        cohort,
        input_ids=torch.cat((cohort.input_ids, decode.input_ids)),
        positions=torch.cat((cohort.positions, decode.positions)),
        out_cache_loc=torch.cat((cohort.out_cache_loc, decode.out_cache_loc)),
    )
    merged.num_token_non_padded_cpu = merged.input_ids.shape[0]
    if cohort.num_token_non_padded is not None:
        merged.num_token_non_padded = cohort.num_token_non_padded + decode.num_token_non_padded
    return merged
