"""The GPU and the host of SGLang's own schedules: what costs other than where layers are grouped.

SGLang computes the experts with Triton, and in a mixed chunk the running requests' rows attend through
the prompts' kernel.
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
#: FlashAttention-3's prefill kernel: rows of a tile; a multiprocessor takes one tile at a time, from its
#: first key to its last. The query heads of a KV head share it, so a decode row is a tile a KV head.
TILE_ROWS, MULTIPROCESSORS = 128, 132
HEAD_DIM = 128
#: Speed of a tile that others do not wait beside, over its share of a GPU that is full of them: 12.2 ns
#: for a token of context where the H200's profile has 14.4. Fitted to iterations of mixed chunks of 512
#: at 1 and 1.5 requests/s (benchmarks/results/2026-11-26-simulator-fidelity.md).
LONE_TILE = 1.2


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

    def mixed(self, decode: DecodeWork, work: CohortWork, longest: int) -> Times:
        """A mixed chunk: all layers of both, launched as a prefill. ``longest``: the most tokens that
        one row of it attends to."""
        layers, rows = self.model.shape.num_layers, decode.requests + work.tokens
        # Rows without a context of their own: their attention is the tiles'.
        line = self.model.merged(DecodeWork(decode.requests, 0), work)
        device = line.device_seconds(layers) + self._experts_more(rows)
        device += layers * self._tiles(decode, work, longest)
        return self._timed(device, self._launch(rows), decode, work, layers)

    def _launch(self, rows: int) -> float:
        """Host seconds of an iteration with a prefill of ``rows`` in it."""
        m, c = self.model, self.model.coefficients
        layer = c.host_graph_layer if rows <= m.prefill_graph_rows else c.host_eager_layer
        return c.host_iteration + c.host_admission + m.shape.num_layers * layer

    def _tiles(self, decode: DecodeWork, work: CohortWork, longest: int) -> float:
        """Seconds by which the decode rows make a layer's attention longer than the prompts'.

        The kernel hands long tiles out first. So it takes what all tiles together keep the GPU busy, or
        what the longest one takes a multiprocessor, whichever is more.
        """
        s, rate = self.model.shape, self.model.coefficients.attention_flops
        if decode.requests == 0:
            return 0.0
        tile = 4 * TILE_ROWS * HEAD_DIM / rate  # of the whole GPU, for a token of context
        prompts = 4 * s.attention_size * work.pairs / rate
        rows = s.kv_size / 2 / HEAD_DIM * tile * decode.context
        longest_tile = tile * MULTIPROCESSORS * longest / LONE_TILE
        return max(rows, longest_tile - prompts)

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
