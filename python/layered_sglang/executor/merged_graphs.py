"""The active layer group by CUDA graph replays: one graph a layer, broken at attention.

Long cohorts fill the GPU for longer than the host needs to launch a layer; short ones do not. For
those, each layer is captured at a few sizes of padded rows (cohort rows, decode rows, padding), as
the part before attention and the part after it. Attention itself is launched by the host, because
its shapes are those of the requests.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from sglang.srt.distributed.device_communicators.pynccl_allocator import set_graph_pool_id
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner.base_cuda_graph_runner import freeze_gc
from sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph import (
    BreakableCUDAGraph,
    BreakableCUDAGraphCapture,
)
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode
from sglang.srt.model_executor.runner_utils.pool import get_or_create_global_graph_memory_pool

from layered_sglang.executor.cohort_state import CarriedRows
from layered_sglang.executor.layer_range import LayerRangeModel
from layered_sglang.executor.mixed_attention import MixedAttention
from layered_sglang.scheduling import LayerGroup

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GraphCaptureContext
    from sglang.srt.model_executor.model_runner import ModelRunner

#: Row counts worth a graph, up to the configured limit: an eighth apart, so little is padding.
SIZES = (
    *range(64, 513, 64),
    *range(640, 1025, 128),
    *range(1280, 2049, 256),
    *range(2560, 4097, 512),
    *range(5120, 8193, 1024),
)
WARM_UPS = 2


def sizes_up_to(max_rows: int) -> list[int]:
    """The row counts that get a graph."""
    return [size for size in SIZES if size <= max_rows]


class MergedLayerGraphs:
    """Graphs of single layers for merged rows.

    The static rows belong to the cohort in flight from one of its layer groups to the next: what it
    carries stays where the last graph put it.

    Args:
        model_runner: SGLang's, after it captured its own graphs.
        model: its model, by layer ranges.
        attention: where the graphs break.
        max_rows: no graph for more; at least ``SMALLEST``.
    """

    SMALLEST = SIZES[0]

    def __init__(
        self,
        model_runner: ModelRunner,
        model: LayerRangeModel,
        attention: MixedAttention,
        max_rows: int,
    ) -> None:
        self._model, self._attention = model, attention
        self.sizes = sizes_up_to(max_rows)
        self._graphs: dict[int, list[BreakableCUDAGraph]] = {}  # by size: one a layer
        rows, config = self.sizes[-1], model_runner.model_config
        with torch.device(model_runner.device):
            self._hidden = torch.zeros(rows, config.hidden_size, dtype=config.dtype)
            self._residual = torch.zeros_like(self._hidden)
            self._input_ids = torch.zeros(rows, dtype=torch.int64)
            shape = (3, rows) if model.three_positions else (rows,)
            self._positions = torch.zeros(shape, dtype=torch.int64)
            self._out_cache_loc = torch.zeros(rows, dtype=torch.int64)
        self._capture(model_runner)

    # --- capture ----------------------------------------------------------------------------------

    def _capture(self, model_runner: ModelRunner) -> None:
        with (
            freeze_gc(model_runner.server_args.enable_cudagraph_gc),
            model_capture_mode(),
            self._attention.capturing(),
            graph_capture() as capture,
            forward_context(ForwardContext(attn_backend=self._attention)),
        ):
            for size in reversed(self.sizes):  # the largest first: the others fit into its memory
                rows = self._static_rows(size)
                self._graphs[size] = [
                    self._capture_one(partial(self._run_layer, layer, rows), model_runner, capture)
                    for layer in range(self._model.num_layers)
                ]

    @staticmethod
    def _capture_one(
        run: Callable[[], None], model_runner: ModelRunner, capture: GraphCaptureContext
    ) -> BreakableCUDAGraph:
        device = torch.get_device_module(model_runner.device)
        barrier = model_runner.tp_group.barrier
        pool = get_or_create_global_graph_memory_pool(device)
        set_graph_pool_id(pool)
        for _ in range(WARM_UPS):
            device.synchronize()
            barrier()
            run()
        graph = BreakableCUDAGraph()
        with BreakableCUDAGraphCapture(graph, pool=pool, stream=capture.stream, barrier_fn=barrier):
            run()
        return graph

    def _static_rows(self, size: int) -> ForwardBatch:
        """What layers read per token; attention takes its inputs from the iteration's own batches."""
        positions, numbers = self._positions[..., :size], self._out_cache_loc[:1]
        return ForwardBatch(
            forward_mode=ForwardMode.EXTEND,
            batch_size=1,
            input_ids=self._input_ids[:size],
            positions=positions,
            mrope_positions=positions if self._model.three_positions else None,
            out_cache_loc=self._out_cache_loc[:size],
            req_pool_indices=numbers,
            seq_lens=numbers,
            seq_lens_sum=size,
            num_token_non_padded_cpu=size,
        )

    def _run_layer(self, layer: int, rows: ForwardBatch) -> None:
        size = rows.input_ids.shape[0]
        carried = CarriedRows(self._hidden[:size], self._residual[:size])
        layers = LayerGroup(layer, layer + 1)
        out = self._model.run(layers, rows, None if layer == 0 else carried, self._attention)
        if isinstance(out, torch.Tensor):
            carried.hidden.copy_(out)
        else:
            carried.copy_from(out)

    # --- an iteration -----------------------------------------------------------------------------

    def fits(self, cohort: ForwardBatch, decode: ForwardBatch) -> bool:
        """Whether there is a graph for the rows of both."""
        return cohort.input_ids.shape[0] + decode.input_ids.shape[0] <= self.sizes[-1]

    def run(
        self,
        layers: LayerGroup,
        cohort: ForwardBatch,
        decode: ForwardBatch,
        carried: tuple[CarriedRows, CarriedRows] | None,
    ) -> CarriedRows | torch.Tensor:
        """Run ``layers`` for both parts' rows, as :meth:`LayerRangeModel.run` does for one batch.

        Args:
            layers: the active layer group.
            cohort, decode: the parts that :class:`MixedAttention` was told of.
            carried: their activations; ``None`` from layer 0.

        Returns:
            Views of the static rows, without padding; valid until the next call.
        """
        n, rows = cohort.input_ids.shape[0], cohort.input_ids.shape[0] + decode.input_ids.shape[0]
        size = self.sizes[bisect.bisect_left(self.sizes, rows)]
        ours = CarriedRows(self._hidden[:rows], self._residual[:rows])
        for static, parts in (
            (self._positions, tuple(map(self._model.positions, (cohort, decode)))),
            (self._out_cache_loc, (cohort.out_cache_loc, decode.out_cache_loc)),
            *([(self._input_ids, (cohort.input_ids, decode.input_ids))] if carried is None else []),
        ):
            torch.cat(parts, dim=-1, out=static[..., :rows])
        self._out_cache_loc[rows:size].zero_()  # padding writes to the slot that nobody owns
        self._attention.pad(rows, size)
        if carried is not None:
            for part, activations in zip((ours.rows(0, n), ours.rows(n)), carried, strict=True):
                part.copy_from(activations)
        with forward_context(ForwardContext(attn_backend=self._attention)):
            for graph in self._graphs[size][slice(*layers)]:
                graph.replay()
        return ours.hidden if layers.end == self._model.num_layers else ours
