"""The GPU of the simulation: what an iteration takes, reads and burns."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork

#: A nominal power model, not a measurement: while busy, and per byte and flop beyond that.
IDLE_WATTS = 150.0
JOULES_PER_BYTE = 55e-12
JOULES_PER_FLOP = 0.7e-12


class Times(NamedTuple):
    """Seconds of an iteration: on the GPU, and on the host that launches it."""

    device: float
    host: float


@dataclass
class World:
    """Times iterations by ``model``, times a bias and noise that the planner does not know.

    Attributes:
        noise: standard deviation of the logarithm of an iteration's GPU time.
        bias: reality over the model.
        host_noise: as ``noise``, of the time in which the host launches an iteration with prompts.
        expert_bytes, joules, busy: sums over the iterations so far.
    """

    model: CostModel
    noise: float = 0.0
    bias: float = 1.0
    seed: int = 0
    expert_bytes: float = 0.0
    joules: float = 0.0
    busy: float = 0.0
    host_noise: float = 0.0
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
        first = self.decode_seconds(requests, context)
        last, total = first, first
        if iterations > 1:
            last = self.decode_seconds(requests, context + requests * (iterations - 1))
            total = (first + last) / 2 * iterations
        factor = self._factor()
        layers = self.model.shape.num_layers
        middle = context + requests * (iterations - 1) / 2
        self._account(total * factor, requests, 0, middle, layers, 0, 0.0, iterations)
        return total * factor, last * factor

    def decode_seconds(self, requests: int, context: int) -> float:
        """A decode iteration, without noise and bias."""
        return self.model.decode(DecodeWork(requests, context)).seconds()

    @cached_property
    def launch_decode(self) -> float:
        """Host seconds of an iteration that only decodes."""
        return self.model.decode(DecodeWork(1, 1)).host_seconds()

    def merged(
        self, decode: DecodeWork, work: CohortWork, layers: int, first: bool, last: bool
    ) -> Times:
        """A layer group of the cohort beside decode; its ``first``, or its ``last``."""
        line = self.model.merged(decode, work)
        device = line.device + layers * line.device_per_layer
        host = line.host + layers * line.host_per_layer
        if first:
            host += line.admission
        if last:
            device += line.finish
        return self._timed(device, host, decode, work, layers)

    def prefill(self, work: CohortWork) -> Times:
        """SGLang's own prefill: all layers of the prompts alone."""
        line = self.model.prefill(work)
        layers = self.model.shape.num_layers
        return self._timed(line.device_seconds(), line.host_seconds(), DecodeWork(), work, layers)

    def _timed(
        self, device: float, host: float, decode: DecodeWork, work: CohortWork, layers: int
    ) -> Times:
        device, host = device * self._factor(), host * self.bias * self._spread(self.host_noise)
        busy = device + host
        if self.model.overlap:
            busy = device if device > host else host
        alone = self.model.shape.num_layers - layers
        self._account(
            busy, decode.requests, work.tokens, decode.context, alone, layers, work.pairs, 1
        )
        return Times(device, host)

    def _factor(self) -> float:
        return self.bias * self._spread(self.noise)

    def _spread(self, noise: float) -> float:
        # Mean 1, so that the noise is no bias.
        return self._rng.lognormvariate(-(noise**2) / 2, noise) if noise else 1.0

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
