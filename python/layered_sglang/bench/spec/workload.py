"""The requests of a run: the same for every system, from the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from layered_sglang.bench.spec.arrivals import Arrivals, Replay, read_arrivals
from layered_sglang.bench.spec.lengths import Length, Trace, read_length, read_trace
from layered_sglang.bench.spec.located import Located

#: Of dummy weights: uniform as they are, or shaped like a trained model's.
ROUTERS = ("uniform", "shaped")


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        arrival: seconds after the run's start.
        prompt: token ids.
        output_tokens: tokens to be answered, exactly.
    """

    index: int
    arrival: float
    prompt: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True)
class SharedPrefix:
    """Every prompt starts with one of ``groups`` texts of ``tokens`` tokens, beside its own."""

    tokens: int
    groups: int


@dataclass(frozen=True)
class Workload:
    """Lengths, arrival times and shared prefixes.

    Attributes:
        prompt, output: lengths, where there is no trace.
        trace: rows of lengths in the place of ``prompt`` and ``output``.
        requests: how many, or None for those that arrive within ``duration``.
        duration: seconds in which requests arrive.
        seed: of lengths, arrival times and tokens.
        router: one of ROUTERS.
    """

    prompt: Length | None
    output: Length | None
    trace: Trace | None
    arrivals: Arrivals
    requests: int | None
    duration: float | None
    shared_prefix: SharedPrefix | None
    seed: int
    router: str = ROUTERS[0]


def read_workload(at: Located, router: str = ROUTERS[0]) -> Workload:
    """A workload of the scenario.

    Args:
        router: the scenario's, for a workload that does not say.
    """
    trace = at.get("trace", read_trace, None)
    prompt = at.get("prompt_tokens", read_length, None)
    output = at.get("output_tokens", read_length, None)
    arrivals = at.get(
        "arrivals", lambda n: read_arrivals(n, trace.arrivals if trace else None), None
    )
    requests = at.get("requests", Located.count, None)
    duration = at.get("duration", Located.positive, None)
    shared = at.get("shared_prefix", _read_shared_prefix, None)
    seed = at.get("seed", lambda node: node.count(0), 0)
    router = at.get("router", lambda node: node.choice(ROUTERS), router)
    at.finish()
    if trace is None and (prompt is None or output is None):
        raise at.error("needs prompt_tokens and output_tokens, or a trace")
    if trace is not None and (prompt is not None or output is not None):
        raise at.error("has a trace, so prompt_tokens and output_tokens must be absent")
    if arrivals is None:
        raise at.error("needs arrivals")
    if (requests is None) == (duration is None):
        raise at.error("needs either requests or duration (seconds)")
    if duration is not None and arrivals.rate is None and not isinstance(arrivals, Replay):
        raise at.error("arrivals at once have no duration; say how many requests")
    return Workload(prompt, output, trace, arrivals, requests, duration, shared, seed, router)


def _read_shared_prefix(at: Located) -> SharedPrefix:
    shared = SharedPrefix(at.required("tokens").count(), at.get("groups", Located.count, 1))
    at.finish()
    return shared


def make_requests(
    workload: Workload, vocabulary: int, rate: float | None = None, repeat: int = 0
) -> list[Request]:
    """The requests of one run.

    Args:
        vocabulary: token ids are below it.
        rate: requests per second, None for the workload's own.
        repeat: another repeat has the same lengths and arrival times and other tokens, so that a
            cache does not know them.
    """
    lengths = make_lengths(workload)
    arrivals = workload.arrivals.times(rate, random.Random(f"{workload.seed} arrivals"))
    rng = random.Random(f"{workload.seed} tokens {repeat}")
    ids = range(vocabulary)
    prefixes = []
    if workload.shared_prefix is not None:
        shared = workload.shared_prefix
        prefixes = [rng.choices(ids, k=shared.tokens) for _ in range(shared.groups)]
    requests = []
    for index, ((prompt, output), arrival) in enumerate(
        zip(lengths, _within(workload, arrivals), strict=False)
    ):
        prefix = rng.choice(prefixes) if prefixes else []
        tokens = (*prefix, *rng.choices(ids, k=prompt))
        requests.append(Request(index, arrival, tokens, output))
    return requests


def make_lengths(workload: Workload) -> Iterator[tuple[int, int]]:
    """Endless (prompt tokens, answer tokens); a replayed trace in its order, any other at random."""
    rng = random.Random(f"{workload.seed} lengths")
    if workload.trace is None:
        assert workload.prompt is not None and workload.output is not None
        while True:
            yield workload.prompt.draw(rng), workload.output.draw(rng)
    if isinstance(workload.arrivals, Replay):
        yield from workload.trace.lengths
        return
    while True:
        yield rng.choice(workload.trace.lengths)


def _within(workload: Workload, arrivals: Iterator[float]) -> Iterator[float]:
    for arrival in islice(arrivals, workload.requests):
        if workload.duration is not None and arrival >= workload.duration:
            return
        yield arrival
