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
from functools import cached_property
from typing import NamedTuple

from layered_sglang.scheduling.model_shape import ModelShape
from layered_sglang.scheduling.work import CohortWork, DecodeWork

#: Iterations whose line is kept.
REMEMBERED = 16
#: Numbers of rows whose time is kept.
REMEMBERED_ROWS = 16_384


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

    def at_clock(self, share: float) -> Coefficients:
        """The same GPU with its multiprocessors at ``share`` of their clock; memory keeps its own."""
        return dataclasses.replace(
            self,
            matmul_flops=self.matmul_flops * share,
            expert_flops=self.expert_flops * share,
            attention_flops=self.attention_flops * share,
            row_seconds=self.row_seconds / share,
        )


class IterationTime(NamedTuple):
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

    def scaled(self, base: float, per_layer: float, host: float | None = None) -> IterationTime:
        """Its constant parts times ``base``, its slopes times ``per_layer``; all of the host's times
        ``host`` where that is known."""
        if base == per_layer == 1.0 and host is None:
            return self
        return IterationTime(
            self.device * base,
            self.device_per_layer * per_layer,
            self.host * (base if host is None else host),
            self.host_per_layer * (per_layer if host is None else host),
            self.overlap,
            self.costs,
            self.admission * (base if host is None else host),
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
            runs as the larger one: the rows that fill it up load experts, too. A larger batch than all
            of them is launched layer by layer.
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
    _heads: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        launched = 0 if self._replays(decode) else layers * c.host_eager_layer
        return IterationTime(device, host=c.host_iteration + launched, overlap=self.overlap)

    def _merged(self, decode: DecodeWork, cohort: CohortWork) -> IterationTime:
        c, layers = self.coefficients, self.shape.num_layers
        decode = self.filled_up(decode)
        alone = self._layer(decode, None) if decode.requests else 0.0
        eager = c.host_eager_layer if not self.graphed(decode, cohort) else c.host_graph_layer
        passing = 0.0
        if decode.requests:
            passing = c.host_decode_layer if self._replays(decode) else c.host_eager_layer
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

    def _replays(self, decode: DecodeWork) -> bool:
        """Whether decode of these requests replays graphs."""
        largest = self.decode_sizes[-1] if self.decode_sizes else decode.requests
        return self.decode_graphs and decode.requests <= largest

    def graphed(self, decode: DecodeWork, cohort: CohortWork) -> bool:
        """Whether a layer group of the cohort replays graphs beside ``decode``."""
        return decode.requests > 0 and decode.requests + cohort.tokens <= self.graph_rows

    @cached_property
    def _kinds(self) -> tuple[_Kind, ...]:
        s, c = self.shape, self.coefficients
        return tuple(
            _Kind(
                kind.dense_params * s.dtype_bytes / c.weight_bandwidth,
                2 * kind.dense_params / c.matmul_flops,
                kind.expert_params * s.dtype_bytes / c.expert_bandwidth,
                2 * kind.expert_params * s.topk / c.expert_flops,
                s.kv_size * s.dtype_bytes / c.kv_bandwidth,
                4 * s.attention_size / c.attention_flops,
                kind.window,
                # Each request that decodes reads and writes its state, and each of a prompt's tokens is
                # multiplied with it three times: to forget, to correct, to read.
                2 * kind.state * 4 / c.kv_bandwidth,
                6 * kind.state / c.attention_flops,
                count,
            )
            for kind, count in s.kinds
        )

    def _layer(self, decode: DecodeWork, cohort: CohortWork | None) -> float:
        """GPU seconds of one layer with both parts' rows in it, on average over the layers."""
        kinds = self._kinds
        if len(kinds) == 1:
            return self._kind(kinds[0], decode, cohort)
        total = sum(kind.layers * self._kind(kind, decode, cohort) for kind in kinds)
        return total / self.shape.num_layers

    def _costs(self, decode: DecodeWork, cohort: CohortWork) -> tuple[float, ...]:
        """What the cohort adds to each layer, against what it adds to one on average."""
        shape = self.shape
        if len(shape.kinds) == 1:
            return ()
        added = []
        for kind in self._kinds:
            alone = self._kind(kind, decode, None) if decode.requests else 0.0
            added.append(self._kind(kind, decode, cohort) - alone)
        total = sum(kind.layers * seconds for kind, seconds in zip(self._kinds, added, strict=True))
        mean = total / shape.num_layers
        by_kind = {
            kind: seconds / mean for (kind, _), seconds in zip(shape.kinds, added, strict=True)
        }
        return tuple(by_kind[kind] for kind in shape.layers)

    def _kind(self, kind: _Kind, decode: DecodeWork, cohort: CohortWork | None) -> float:
        """GPU seconds of one layer of ``kind`` with both parts' rows in it."""
        rows, context, pairs = decode.requests, float(decode.context), 0.0
        if cohort is not None:
            rows += cohort.tokens
            pairs = cohort.pairs
        # A window bounds what each query reads, so also what they read together.
        if kind.window:
            context = min(context, decode.requests * kind.window)
            pairs = 0.0 if cohort is None else min(pairs, cohort.tokens * kind.window)
        each = kind.by_rows.get(rows)
        if each is None:
            if len(kind.by_rows) >= REMEMBERED_ROWS:
                kind.by_rows.clear()
            each = kind.by_rows[rows] = self._without_attention(kind, rows)
        if kind.decode_state or kind.token_state:
            tokens = 0 if cohort is None else cohort.tokens
            return each + decode.requests * kind.decode_state + tokens * kind.token_state
        return each + context * kind.reading + pairs * kind.attending

    def _without_attention(self, kind: _Kind, rows: int) -> float:
        s, c = self.shape, self.coefficients
        dense = math.hypot(kind.weights, kind.products * rows)
        experts = 0.0
        if kind.expert:
            reached = s.experts_reached(rows)
            experts = math.hypot(reached * kind.expert, kind.expert_products * rows)
        return dense + experts + c.layer_seconds + rows * c.row_seconds

    def _once(self, rows: int) -> float:
        """GPU seconds of the head and the sampler for ``rows`` tokens."""
        seconds = self._heads.get(rows)
        if seconds is None:
            s, c = self.shape, self.coefficients
            head = math.hypot(
                s.head_params * s.dtype_bytes / c.weight_bandwidth,
                2 * s.head_params * rows / c.matmul_flops,
            )
            seconds = self._heads[rows] = head + c.iteration_seconds if rows else 0.0
        return seconds


@dataclass(frozen=True, eq=False)
class _Kind:
    """Seconds of a kind of layer.

    Attributes:
        weights, products: of the weights that every row passes: their reading; a row's products.
        expert, expert_products: of the routed experts: one's reading; a row's products.
        reading, attending: of attention: a decode row's token of context; a (query, key) pair.
        window: of :class:`LayerKind`.
        decode_state, token_state: of linear attention: a decode row; a token of a prompt. 0: the layer
            has keys and values.
        layers: how many there are of it.
        by_rows: seconds without attention by rows: iterations of a cohort differ in their context only.
    """

    weights: float
    products: float
    expert: float
    expert_products: float
    reading: float
    attending: float
    window: int
    decode_state: float
    token_state: float
    layers: int
    by_rows: dict[int, float] = field(default_factory=dict)
