"""How long does an iteration take? Rooflines for the GPU's part, launch costs for the host's.

Every term is bytes over a bandwidth or multiplications over a rate, with the bandwidths and rates as
coefficients that ``python -m layered_sglang.calibrate`` fits to measured iterations.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from layered_sglang.scheduling.model_shape import LayerKind, ModelShape
from layered_sglang.scheduling.work import CohortWork, DecodeWork

#: Iterations whose line is kept.
REMEMBERED = 16


@dataclass(frozen=True)
class Coefficients:
    """What the GPU and the host reach. Bytes and multiply-adds are those of :class:`ModelShape`.

    Attributes:
        weight_bandwidth: bytes/s at which weights every row passes are read.
        matmul_flops: flop/s of the matrix products with them.
        expert_bandwidth: bytes/s at which expert weights are read.
        expert_flops: flop/s of the expert products.
        kv_bandwidth: bytes/s at which decode attention reads the KV cache.
        attention_flops: flop/s of prefill attention.
        layer_seconds: GPU time of a layer that is neither (launches, norms, waits).
        row_seconds: GPU time per row and layer that is neither (elementwise work).
        iteration_seconds: GPU time an iteration outside the layers (sampling, copies).
        finish_seconds: GPU time of an iteration in which a cohort runs its last layer: its own logits and
            sampling.
        host_iteration: host time of an iteration whatever runs in it.
        host_admission: host time more of one that admits prompts: chosen, given KV slots, made tensors.
        host_decode_layer: host time of a decode layer beside a layer group.
        host_graph_layer: host time of an active layer that replays a graph.
        host_eager_layer: host time of an active layer, or of a prefill layer, launched eagerly.
    """

    weight_bandwidth: float
    matmul_flops: float
    expert_bandwidth: float
    expert_flops: float
    kv_bandwidth: float
    attention_flops: float
    layer_seconds: float = 8e-6
    row_seconds: float = 4e-9
    iteration_seconds: float = 4e-4
    finish_seconds: float = 7e-4
    host_iteration: float = 2e-3
    host_admission: float = 2.5e-3
    host_decode_layer: float = 2e-5
    host_graph_layer: float = 1.2e-4
    host_eager_layer: float = 1.1e-3

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"coefficient {f.name} must be a positive number, got {value}")


@dataclass(frozen=True)
class IterationTime:
    """Seconds of an iteration as a line in the number of active layers, for GPU and host.

    With overlap the two work at the same time and the longer one counts; without, they add up.

    Attributes:
        costs: of the layers one by one, in mean layers, where they are not all alike. A layer group
            then counts as the sum of its layers.
        admission: host time more of a cohort's first layer group.
        finish: GPU time more of its last one.
    """

    device: float
    device_per_layer: float = 0.0
    host: float = 0.0
    host_per_layer: float = 0.0
    overlap: bool = True
    costs: tuple[float, ...] = ()
    admission: float = 0.0
    finish: float = 0.0

    def at(self, first: bool, last: bool) -> IterationTime:
        """The line of an iteration that has the cohort's first layer group, or its last, in it."""
        if not (first or last):
            return self
        return IterationTime(
            self.device + (self.finish if last else 0.0),
            self.device_per_layer,
            self.host + (self.admission if first else 0.0),
            self.host_per_layer,
            self.overlap,
            self.costs,
            self.admission,
            self.finish,
        )

    def anywhere(self) -> IterationTime:
        """The line of an iteration that may be a cohort's first and its last: its layer groups are of
        one size, so that size has to fit wherever it runs."""
        return self.at(True, True)

    def device_seconds(self, layers: float = 0) -> float:
        return self.device + layers * self.device_per_layer

    def host_seconds(self, layers: float = 0) -> float:
        return self.host + layers * self.host_per_layer

    def seconds(self, layers: float = 0) -> float:
        device, host = self.device_seconds(layers), self.host_seconds(layers)
        return max(device, host) if self.overlap else device + host

    def mean_layers(self, start: int, end: int) -> float:
        """Layers ``start`` … ``end - 1`` in mean layers."""
        return sum(self.costs[start:end]) if self.costs else end - start

    @property
    def dearest(self) -> float:
        """The layer that costs most, in mean layers."""
        return max(self.costs, default=1.0)

    def layers_within(self, seconds: float) -> int:
        """The largest number of mean layers that takes at most ``seconds``; at least 0."""
        return int(self.mean_layers_within(seconds))

    def mean_layers_within(self, seconds: float) -> float:
        """Mean layers that take ``seconds``; at least 0, at most a million."""
        lines = [(self.device, self.device_per_layer), (self.host, self.host_per_layer)]
        if not self.overlap:
            lines = [(self.device + self.host, self.device_per_layer + self.host_per_layer)]
        most = math.inf
        for base, slope in lines:
            if base > seconds:
                return 0
            if slope > 0:
                most = min(most, (seconds - base) / slope * (1 + 1e-12))
        return min(most, 1e6)

    def scaled(self, base: float, per_layer: float) -> IterationTime:
        """Its constant parts times ``base``, its slopes times ``per_layer``."""
        if base == per_layer == 1.0:
            return self
        return IterationTime(
            self.device * base,
            self.device_per_layer * per_layer,
            self.host * base,
            self.host_per_layer * per_layer,
            self.overlap,
            self.costs,
            self.admission * base,
            self.finish * per_layer,
        )


@dataclass(frozen=True)
class CostModel:
    """Predicts iterations of one model on one kind of GPU.

    Attributes:
        shape: the model (one rank's part).
        coefficients: what the GPU and the host reach.
        graph_rows: active layer groups of up to this many rows replay CUDA graphs; 0: none do.
        decode_sizes: batch sizes that decode graphs were captured for, ascending. A batch between two
            runs as the larger one: the rows that fill it up load experts, too.
        decode_graphs: whether decode replays CUDA graphs (not on a CPU).
        prefill_graph_rows: SGLang's own prefill replays CUDA graphs up to this many tokens.
        overlap: whether the host prepares an iteration while the GPU runs the one before.

    It remembers its last answers: who plans, who logs, who learns and the simulator's world ask for the
    same iterations.
    """

    shape: ModelShape
    coefficients: Coefficients
    graph_rows: int = 0
    decode_sizes: tuple[int, ...] = ()
    decode_graphs: bool = True
    prefill_graph_rows: int = 0
    overlap: bool = True
    _lines: dict[tuple, IterationTime] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def decode(self, decode: DecodeWork) -> IterationTime:
        """An iteration that only decodes."""
        return self._remembered((decode.requests, decode.context), self._decode, decode)

    def merged(self, decode: DecodeWork, cohort: CohortWork) -> IterationTime:
        """Decode through all layers, and the cohort through as many as the line is asked for."""
        key = (decode.requests, decode.context, cohort.tokens, cohort.pairs)
        return self._remembered(key, self._merged, decode, cohort)

    def _remembered(
        self, key: tuple, compute: Callable[..., IterationTime], *work: DecodeWork | CohortWork
    ) -> IterationTime:
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= REMEMBERED:
                self._lines.clear()
            line = self._lines[key] = compute(*work)
        return line

    def _decode(self, decode: DecodeWork) -> IterationTime:
        if decode.requests == 0:
            return IterationTime(0.0, overlap=self.overlap)
        c, layers = self.coefficients, self.shape.num_layers
        decode = self.filled_up(decode)
        device = layers * self._layer(decode, None) + self._once(decode.requests)
        host = c.host_iteration + (0 if self.decode_graphs else layers * c.host_eager_layer)
        return IterationTime(device, host=host, overlap=self.overlap)

    def _merged(self, decode: DecodeWork, cohort: CohortWork) -> IterationTime:
        c, layers = self.coefficients, self.shape.num_layers
        decode = self.filled_up(decode)
        alone = self._layer(decode, None) if decode.requests else 0.0
        eager = c.host_eager_layer if not self._graphed(decode, cohort) else c.host_graph_layer
        passing = 0.0
        if decode.requests:
            passing = c.host_decode_layer if self.decode_graphs else c.host_eager_layer
        return IterationTime(
            device=layers * alone + self._once(decode.requests),
            device_per_layer=self._layer(decode, cohort) - alone,
            host=c.host_iteration + layers * passing,
            host_per_layer=max(0.0, eager - passing),
            overlap=self.overlap,
            costs=self._costs(decode, cohort),
            admission=c.host_admission,
            finish=c.finish_seconds,
        )

    def prefill(self, cohort: CohortWork) -> IterationTime:
        """SGLang's own prefill: all layers of the prompts, nobody decodes."""
        c, layers = self.coefficients, self.shape.num_layers
        graphed = cohort.tokens <= self.prefill_graph_rows
        return IterationTime(
            device=layers * self._layer(DecodeWork(), cohort) + self._once(cohort.prompts),
            host=c.host_iteration
            + layers * (c.host_graph_layer if graphed else c.host_eager_layer),
            overlap=self.overlap,
        )

    def filled_up(self, decode: DecodeWork) -> DecodeWork:
        """The batch that runs: with rows added up to the next captured size, if there is one."""
        at = bisect.bisect_left(self.decode_sizes, decode.requests)
        if not self.decode_graphs or decode.requests == 0 or at == len(self.decode_sizes):
            return decode
        return DecodeWork(self.decode_sizes[at], decode.context)

    def _graphed(self, decode: DecodeWork, cohort: CohortWork) -> bool:
        return decode.requests > 0 and decode.requests + cohort.tokens <= self.graph_rows

    def _layer(self, decode: DecodeWork, cohort: CohortWork | None) -> float:
        """GPU seconds of one layer with both parts' rows in it, on average over the layers."""
        kinds = self.shape.kinds
        if len(kinds) == 1:
            return self._kind(kinds[0][0], decode, cohort)
        total = sum(count * self._kind(kind, decode, cohort) for kind, count in kinds)
        return total / self.shape.num_layers

    def _costs(self, decode: DecodeWork, cohort: CohortWork) -> tuple[float, ...]:
        """What the cohort adds to each layer, against what it adds to one on average."""
        shape = self.shape
        if len(shape.kinds) == 1:
            return ()
        added = {}
        for kind, _ in shape.kinds:
            alone = self._kind(kind, decode, None) if decode.requests else 0.0
            added[kind] = self._kind(kind, decode, cohort) - alone
        mean = sum(count * added[kind] for kind, count in shape.kinds) / shape.num_layers
        return tuple(added[kind] / mean for kind in shape.layers)

    def _kind(self, kind: LayerKind, decode: DecodeWork, cohort: CohortWork | None) -> float:
        """GPU seconds of one layer of ``kind`` with both parts' rows in it."""
        s, c = self.shape, self.coefficients
        rows = decode.requests + (0 if cohort is None else cohort.tokens)
        dense = _roofline(
            kind.dense_params * s.dtype_bytes / c.weight_bandwidth,
            2 * kind.dense_params * rows / c.matmul_flops,
        )
        experts = 0.0
        if kind.expert_params:
            experts = _roofline(
                s.experts_reached(rows) * kind.expert_params * s.dtype_bytes / c.expert_bandwidth,
                2 * kind.expert_params * s.topk * rows / c.expert_flops,
            )
        # A window bounds what each query reads, so also what they read together.
        context, pairs = float(decode.context), 0.0 if cohort is None else cohort.pairs
        if kind.window:
            context = min(context, decode.requests * kind.window)
            pairs = 0.0 if cohort is None else min(pairs, cohort.tokens * kind.window)
        if kind.state:
            # Each request that decodes reads and writes its state, and each of a prompt's tokens is
            # multiplied with it three times: to forget, to correct, to read.
            attention = 2 * decode.requests * kind.state * 4 / c.kv_bandwidth
            attention += (
                0.0 if cohort is None else 6 * cohort.tokens * kind.state / c.attention_flops
            )
            return dense + experts + attention + c.layer_seconds + rows * c.row_seconds
        attention = context * s.kv_size * s.dtype_bytes / c.kv_bandwidth
        attention += 4 * pairs * s.attention_size / c.attention_flops
        return dense + experts + attention + c.layer_seconds + rows * c.row_seconds

    def _once(self, rows: int) -> float:
        """GPU seconds of the head and the sampler for ``rows`` tokens."""
        if rows == 0:
            return 0.0
        s, c = self.shape, self.coefficients
        head = _roofline(
            s.head_params * s.dtype_bytes / c.weight_bandwidth,
            2 * s.head_params * rows / c.matmul_flops,
        )
        return head + c.iteration_seconds


def _roofline(memory: float, compute: float) -> float:
    """Seconds of work that is bound by the larger part, and by both near the ridge."""
    return math.hypot(memory, compute)
