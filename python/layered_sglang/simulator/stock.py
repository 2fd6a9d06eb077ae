"""The GPU and the host of SGLang's own schedules: what costs other than where layers are grouped.

Measured kernels, none of it fitted to runs of these schedules: SGLang computes the experts with Triton,
and in a mixed chunk the running requests' rows attend through the prompts' kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from layered_sglang.scheduling import CohortWork, DecodeWork
from layered_sglang.simulator.world import Times, World

#: Rows -> time of SGLang's Triton experts over that of the fused experts, on an H100 with 128 experts of
#: 2048 x 768, 8 a row (benchmarks/results/2026-11-25-h100-fused-experts.csv).
TRITON = (
    *((1, 1.455), (2, 1.222), (4, 1.056), (8, 1.008), (16, 1.017), (32, 1.033), (64, 1.024)),
    *((128, 1.015), (256, 1.022), (512, 0.997), (1024, 1.026), (2048, 1.042), (4096, 1.245)),
    *((8192, 1.314), (16384, 1.417)),
)  # fmt: skip
#: The fused experts' flop/s at 8192 rows there. A fit may lay what experts multiply on other terms.
EXPERT_FLOPS = 5.3e14
#: FlashAttention-3's prefill kernel: rows of a tile; a multiprocessor takes one tile at a time. The query
#: heads of a KV head share it, so a decode row is a tile a KV head.
TILE_ROWS, MULTIPROCESSORS = 128, 132
HEAD_DIM = 128
#: Host seconds of a layer of an eager prefill: 54 ms for 48 (2026-11-26-h100-host-time.md). In service
#: launches hide behind the work of the GPU, and a fit to iterations sees too little of them.
EAGER_LAYER = 1.13e-3


@dataclass
class StockWorld(World):
    """Times SGLang's own iterations: decode, chunks of prompts alone, and mixed ones."""

    def decode_seconds(self, requests: int, context: int) -> float:
        rows = self.model.filled_up(DecodeWork(requests, context)).requests
        return super().decode_seconds(requests, context) + self._experts_more(rows)

    def prefill(self, work: CohortWork) -> Times:
        layers = self.model.shape.num_layers
        device = self.model.prefill(work).device_seconds() + self._experts_more(work.tokens)
        return self._timed(device, self._launch(work.tokens), DecodeWork(), work, layers)

    def mixed(self, decode: DecodeWork, work: CohortWork) -> Times:
        """A mixed chunk: all layers of both, launched as a prefill."""
        layers, rows = self.model.shape.num_layers, decode.requests + work.tokens
        # Rows without a context of their own: their attention is the tiles'.
        line = self.model.merged(DecodeWork(decode.requests, 0), work)
        device = line.device_seconds(layers) + self._experts_more(rows) + self._tiles(decode)
        return self._timed(device, self._launch(rows), decode, work, layers)

    def _launch(self, rows: int) -> float:
        """Host seconds of an iteration with a prefill of ``rows`` in it."""
        m, c = self.model, self.model.coefficients
        graphed = rows <= m.prefill_graph_rows
        layer = c.host_graph_layer if graphed else max(c.host_eager_layer, EAGER_LAYER)
        return c.host_iteration + c.host_admission + m.shape.num_layers * layer

    def _tiles(self, decode: DecodeWork) -> float:
        """Seconds of the decode rows' tiles in all layers. The prompt's tiles fill the GPU, so these come
        in waves after them, each as long as a request's context takes one multiprocessor."""
        s, c = self.model.shape, self.model.coefficients
        if decode.requests == 0:
            return 0.0
        kv_heads = s.kv_size / 2 / HEAD_DIM
        waves = math.ceil(decode.requests * kv_heads / MULTIPROCESSORS)
        flops = 4 * TILE_ROWS * HEAD_DIM * decode.context / decode.requests
        return s.num_layers * waves * flops * MULTIPROCESSORS / c.attention_flops

    def _experts_more(self, rows: int) -> float:
        """Seconds that Triton takes longer than the fused experts, in all layers."""
        s, c = self.model.shape, self.model.coefficients
        if s.expert_params == 0 or rows == 0:
            return 0.0
        memory = s.experts_reached(rows) * s.expert_params * s.dtype_bytes / c.expert_bandwidth
        flops = 2 * s.expert_params * s.topk * rows
        fused = math.hypot(memory, flops / min(c.expert_flops, EXPERT_FLOPS))
        return s.num_layers * fused * (triton_over_fused(rows) - 1)


def triton_over_fused(rows: float) -> float:
    """:data:`TRITON` for any number of rows: straight lines over the logarithm of the rows."""
    (before, ratio), *rest = TRITON
    for at, its_ratio in rest:
        if rows <= at:
            share = max(0.0, math.log(rows / before) / math.log(at / before))
            return ratio + share * (its_ratio - ratio)
        before, ratio = at, its_ratio
    return ratio
