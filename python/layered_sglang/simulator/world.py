"""The GPU of the simulation: what an iteration takes, reads and burns."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork

#: A nominal power model, not a measurement: while busy, and per byte and flop beyond that.
IDLE_WATTS = 150.0
JOULES_PER_BYTE = 55e-12
JOULES_PER_FLOP = 0.7e-12


@dataclass
class World:
    """Times iterations by ``model``, times a bias and noise that the planner does not know.

    Attributes:
        noise: standard deviation of the logarithm of an iteration's time.
        bias: reality over the model.
        expert_bytes, joules, busy: sums over the iterations so far.
    """

    model: CostModel
    noise: float = 0.0
    bias: float = 1.0
    seed: int = 0
    expert_bytes: float = 0.0
    joules: float = 0.0
    busy: float = 0.0
    _reached: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        shape = self.model.shape
        self._expert_bytes = shape.expert_params * shape.dtype_bytes
        self._row_flops = 2 * (shape.dense_params + shape.topk * shape.expert_params)
        self._dense_bytes = shape.dense_params * shape.dtype_bytes
        self._kv_bytes = shape.kv_size * shape.dtype_bytes

    def decode(self, requests: int, context: int, iterations: int = 1) -> tuple[float, float]:
        """``iterations`` of decode, the context growing by a token a request in each.

        Returns the seconds of all of them and of the last.
        """
        first = self.model.decode(DecodeWork(requests, context)).seconds()
        last, total = first, first
        if iterations > 1:
            grown = context + requests * (iterations - 1)
            last = self.model.decode(DecodeWork(requests, grown)).seconds()
            total = (first + last) / 2 * iterations
        factor = self._factor()
        layers = self.model.shape.num_layers
        middle = context + requests * (iterations - 1) / 2
        self._account(total * factor, requests, 0, middle, layers, 0, 0.0, iterations)
        return total * factor, last * factor

    def merged(self, decode: DecodeWork, work: CohortWork, layers: int) -> float:
        """A layer group of the cohort beside decode."""
        seconds = self.model.merged(decode, work).seconds(layers) * self._factor()
        self._account_parts(seconds, decode, work, layers)
        return seconds

    def mixed(self, decode: DecodeWork, work: CohortWork) -> float:
        """SGLang's mixed chunk: all layers of both, launched as a prefill."""
        m, layers = self.model, self.model.shape.num_layers
        line, c = m.merged(decode, work), m.coefficients
        graphed = decode.requests + work.tokens <= m.prefill_graph_rows
        host = c.host_iteration + layers * (c.host_graph_layer if graphed else c.host_eager_layer)
        device = line.device + layers * line.device_per_layer
        seconds = (max(device, host) if m.overlap else device + host) * self._factor()
        self._account_parts(seconds, decode, work, layers)
        return seconds

    def prefill(self, work: CohortWork) -> float:
        """SGLang's own prefill: all layers of the prompts alone."""
        seconds = self.model.prefill(work).seconds() * self._factor()
        self._account_parts(seconds, DecodeWork(), work, self.model.shape.num_layers)
        return seconds

    def _factor(self) -> float:
        if self.noise == 0:
            return self.bias
        # Mean 1, so that the noise is no bias.
        return self.bias * self._rng.lognormvariate(-(self.noise**2) / 2, self.noise)

    def _account_parts(
        self, seconds: float, decode: DecodeWork, work: CohortWork, layers: int
    ) -> None:
        alone = self.model.shape.num_layers - layers
        self._account(
            seconds, decode.requests, work.tokens, decode.context, alone, layers, work.pairs, 1
        )

    def _account(
        self,
        seconds: float,
        requests: int,
        tokens: int,
        context: float,
        alone: int,
        together: int,
        pairs: float,
        times: int,
    ) -> None:
        """Add up ``times`` iterations: ``alone`` layers with decode rows only, ``together`` with both."""
        if requests == 0:
            alone = 0
        experts = (
            alone * self._experts(requests) + together * self._experts(requests + tokens)
        ) * self._expert_bytes
        kv = (alone + together) * context * self._kv_bytes
        bytes_read = experts + (alone + together) * self._dense_bytes + kv
        flops = (alone * requests + together * (requests + tokens)) * self._row_flops
        flops += together * 4 * pairs * self.model.shape.attention_size
        self.busy += seconds
        self.expert_bytes += times * experts
        self.joules += IDLE_WATTS * seconds
        self.joules += times * (bytes_read * JOULES_PER_BYTE + flops * JOULES_PER_FLOP)

    def _experts(self, rows: int) -> float:
        reached = self._reached.get(rows)
        if reached is None:
            reached = self._reached[rows] = self.model.shape.experts_reached(rows)
        return reached


def check_noise(noise: float, bias: float) -> bool:
    return math.isfinite(noise) and math.isfinite(bias) and noise >= 0 and bias > 0
