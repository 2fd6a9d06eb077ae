"""One iteration: decode rows through every layer, cohort rows through the active layer group.

::

    decode rows   [0 ────── s)   [s ═ active layer group ═ e)   [e ────── L) → logits
    cohort rows                   └─ join here, leave here ─┘    (logits only when e = L)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from layered_sglang.executor.architectures import Architecture
from layered_sglang.executor.cohort_state import CarriedRows, CohortState
from layered_sglang.executor.decode_graphs import DecodeGraphRows
from layered_sglang.executor.decode_rows import DecodeRows, EagerDecodeRows
from layered_sglang.executor.green_contexts import Partitioning
from layered_sglang.executor.kernel_loading import load_kernels
from layered_sglang.executor.latent_attention import LatentAttention
from layered_sglang.executor.layer_range import LayerRangeModel
from layered_sglang.executor.merged_graphs import MergedLayerGraphs
from layered_sglang.executor.mixed_attention import MixedAttention
from layered_sglang.executor.side_by_side import SideBySide
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
    SGLang's captured decode graphs): one planned for the cohort that runs, one for the decode rows.

    Args:
        model_runner: SGLang's.
        architecture: of its model.
        with_decode: whether iterations may have decode rows in them; ``False``: layer groups run apart
            from decode, and no attention backend is made for its rows.
    """

    def __init__(
        self, model_runner: ModelRunner, architecture: Architecture, with_decode: bool = True
    ) -> None:
        adapters = model_runner.lora_manager if model_runner.server_args.enable_lora else None
        self.model = LayerRangeModel(model_runner.model, architecture, adapters)
        cohort = model_runner._get_attention_backend(init_new_workspace=True)
        decode = None
        if with_decode:
            decode = model_runner._get_attention_backend(init_new_workspace=True)
        self.attention = MixedAttention(cohort, decode)
        self._latent: LatentAttention | None = None
        if architecture.latent:
            names = model_runner.server_args.get_attention_backends()
            self._latent = LatentAttention(self.model.layers, self.attention, names)
        self._eager_decode = None if decode is None else EagerDecodeRows(self.model, decode)
        self._decode_graphs: DecodeGraphRows | None = None
        self._merged_graphs: MergedLayerGraphs | None = None
        self._side_by_side: SideBySide | None = None
        self._active: CohortState | None = None  # whose metadata and rows are in place

    @property
    def graph_rows(self) -> int:
        """Active layer groups of up to this many rows replay graphs; 0: none do."""
        return 0 if self._merged_graphs is None else self._merged_graphs.sizes[-1]

    @property
    def decode_sizes(self) -> tuple[int, ...]:
        """Batch sizes that decode replays graphs of, ascending; empty without graphs."""
        return () if self._decode_graphs is None else tuple(self._decode_graphs.capture_bs)

    @property
    def decode_graphs(self) -> bool:
        """Whether decode rows beside a layer group replay graphs."""
        return self._decode_graphs is not None

    def capture_graphs(
        self,
        model_runner: ModelRunner,
        max_merged_rows: int,
        partitioning: Partitioning | None = None,
    ) -> str:
        """Capture the layers as CUDA graphs, after SGLang captured its own.

        Args:
            model_runner: SGLang's.
            max_merged_rows: cohort and decode rows of an active layer group that a graph is kept for;
                0: none.
            partitioning: for longer layer groups decode and the cohort run side by side, each in its
                lane; ``None``: they are merged, too.

        Returns:
            What was captured, one phrase for the start-up banner.
        """
        self._decode_graphs = DecodeGraphRows(model_runner, self.model, self.attention.decode)
        text = f"each layer of decode up to {self._decode_graphs.max_bs} requests"
        if max_merged_rows >= MergedLayerGraphs.SMALLEST and model_runner.server_args.ep_size == 1:
            self._merged_graphs = MergedLayerGraphs(
                model_runner, self.model, self.attention, max_merged_rows
            )
            text += f", of layer groups up to {self._merged_graphs.sizes[-1]} tokens"
        if partitioning is not None:
            self._side_by_side = SideBySide(model_runner, partitioning)
            text += f", {self._side_by_side.describe()}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what trial runs took on the capture's stream serves no other
        return text

    def load_kernels(self, most_rows: int, device: str) -> None:
        """Load the kernels of layer groups of up to ``most_rows`` rows that will be launched without
        graphs."""
        load_kernels(self.model, self.attention.cohort, most_rows, device)

    def run(
        self,
        decode: ForwardBatch | None,
        state: CohortState,
        layers: LayerGroup,
        planned: Callable[[], None],
    ) -> IterationLogits:
        """Run the cohort of ``state`` through ``layers`` and, if given, ``decode`` through all layers.

        ``state.carried`` moves on to the end of ``layers``; after the model's last layer it is
        ``None`` and the cohort's logits are in the result.

        Args:
            decode: the running requests' rows, or ``None`` when nobody decodes in this forward.
            state: the cohort's.
            layers: the active layer group.
            planned: called once attention is planned: what was launched until then, and nothing
                later, reads the tables that map requests to KV slots.
        """
        cohort = state.forward_batch
        assert cohort is not None and (state.carried is None) == (layers.start == 0)
        self._activate(state)
        if not state.planned:
            self.attention.cohort.init_forward_metadata(cohort)
            if self._latent is not None:
                self._latent.plan(cohort)
            state.planned = True
        if decode is None:
            planned()
            return IterationLogits(None, self._run_cohort(state, layers))
        if self._runs_side_by_side(cohort, decode):
            return self._run_side_by_side(decode, state, layers, planned)
        graphs = self._decode_graphs
        passing: DecodeRows | None = self._eager_decode
        if graphs is not None and graphs.can_run_graph(decode):
            passing = graphs
        assert passing is not None, "made to run layer groups apart from decode"
        rows = passing.begin(decode)  # may be padded
        planned()
        before = passing.before(layers.start) if layers.start > 0 else None

        out = self._run_active(state, rows, before, layers)
        n = cohort.input_ids.shape[0]
        if isinstance(out, torch.Tensor):  # both went through the last layer
            logits = self.model.logits(decode, out[n : n + decode.input_ids.shape[0]])
            return IterationLogits(logits, self._leave(state, cohort, out[:n]))
        state.carried = out.rows(0, n)
        return IterationLogits(passing.after(layers.end, out.rows(n)), None)

    def _runs_side_by_side(self, cohort: ForwardBatch, decode: ForwardBatch) -> bool:
        """Only where merged rows have no graph: what is launched layer by layer hides behind decode."""
        return (
            self._side_by_side is not None
            and self._graphs_for(cohort, decode) is None
            and self._side_by_side.takes(decode)
        )

    def _graphs_for(self, cohort: ForwardBatch, decode: ForwardBatch) -> MergedLayerGraphs | None:
        """The graphs that the rows of both can replay, if there are some."""
        graphs = self._merged_graphs
        return graphs if graphs is not None and graphs.fits(cohort, decode) else None

    def _run_side_by_side(
        self,
        decode: ForwardBatch,
        state: CohortState,
        layers: LayerGroup,
        planned: Callable[[], None],
    ) -> IterationLogits:
        """Decode's whole graph on its part of the GPU, the cohort's layer group on the other."""
        assert self._side_by_side is not None
        results = self._side_by_side.run(decode, planned, lambda: self._run_cohort(state, layers))
        return IterationLogits(*results)

    def _run_cohort(self, state: CohortState, layers: LayerGroup) -> LogitsProcessorOutput | None:
        """The cohort alone through ``layers``."""
        cohort = state.forward_batch
        assert cohort is not None
        out: CarriedRows | torch.Tensor | None = state.carried
        borders = [i for i in self.model.captured if layers.start <= i < layers.end]
        with self.attention.waiting_for(state.loads):
            for part in pairwise(sorted({*layers, *borders})):
                if part[0] in borders:
                    assert isinstance(out, CarriedRows)
                    state.captured.append(out.hidden + out.residual)
                out = self.model.run(LayerGroup(*part), cohort, out, self.attention.cohort)
        assert out is not None
        return self._leave(state, cohort, out)

    def _activate(self, state: CohortState) -> None:
        """Put ``state`` in the place of the cohort that ran before it, if that is another one."""
        if self._active is state:
            return
        if self._active is not None:
            self._active.park()
        self._active = state
        state.planned = False

    def _run_active(
        self,
        state: CohortState,
        decode: ForwardBatch,
        before: CarriedRows | None,
        layers: LayerGroup,
    ) -> CarriedRows | torch.Tensor:
        """The active layer group: cohort rows, then decode rows, through ``layers``."""
        cohort, carried = state.forward_batch, state.carried
        assert cohort is not None
        self.attention.set_rows(cohort, decode, state.loads)
        try:
            graphs = self._graphs_for(cohort, decode)
            if graphs is not None:
                both = None if carried is None or before is None else (carried, before)
                return graphs.run(layers, cohort, decode, both)
            rows = None
            if carried is not None and before is not None:
                rows = CarriedRows.cat(carried, before)
            merged = merge_inputs(cohort, decode)
            if self.model.has_adapters:
                _merge_adapters(merged, cohort, decode)
            return self.model.run(layers, merged, rows, self.attention)
        finally:
            self.attention.set_rows(None, None)

    def _leave(
        self, state: CohortState, cohort: ForwardBatch, out: CarriedRows | torch.Tensor
    ) -> LogitsProcessorOutput | None:
        """Keep the cohort's rows for its next layer group, or turn its last ones into logits."""
        if isinstance(out, CarriedRows):
            state.carried = out
            return None
        state.carried = None
        self._active = None
        captured, state.captured = state.captured, []
        return self.model.logits(cohort, out, captured)


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
    if cohort.mrope_positions is not None and decode.mrope_positions is not None:
        merged.mrope_positions = torch.cat((cohort.mrope_positions, decode.mrope_positions), dim=1)
    merged.num_token_non_padded_cpu = merged.input_ids.shape[0]
    if cohort.num_token_non_padded is not None:
        merged.num_token_non_padded = cohort.num_token_non_padded + decode.num_token_non_padded
    return merged


def _merge_adapters(merged: ForwardBatch, cohort: ForwardBatch, decode: ForwardBatch) -> None:
    """Which adapter each request of ``merged`` has, and how many rows: to SGLang's LoRA manager a
    request that decodes is a prompt of one token."""
    ones = [1] * decode.batch_size
    merged.lora_ids = [*cohort.lora_ids, *decode.lora_ids]
    merged.batch_size = cohort.batch_size + decode.batch_size
    # By which SGLang knows whether its prefill graphs' buffers have room for what it computes of these.
    merged.extend_num_tokens = cohort.extend_num_tokens + decode.batch_size
    merged.extend_seq_lens_cpu = [*cohort.extend_seq_lens_cpu, *ones]
    merged.extend_seq_lens = torch.cat(
        (cohort.extend_seq_lens, cohort.extend_seq_lens.new_ones(decode.batch_size))
    )
