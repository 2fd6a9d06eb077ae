"""Times GPU work by replaying a CUDA graph, so that the host's launch cost stays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch


class Spread(NamedTuple):
    """Microseconds of one call."""

    median: float
    p10: float
    p90: float


def time_in_graph(
    call: Callable[[], object], repeats: int = 50, calls_per_graph: int = 20
) -> Spread:
    """Captures calls_per_graph calls in a graph and times `repeats` replays of it.

    What lies between dependent kernels on the GPU is in the figure. The call must not wait for
    the device.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls_per_graph):
            call()

    warm_up = 5
    microseconds = []
    for _ in range(warm_up + repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        microseconds.append(start.elapsed_time(stop) * 1e3 / calls_per_graph)
    microseconds = sorted(microseconds[warm_up:])
    return Spread(*(microseconds[round(q * (repeats - 1))] for q in (0.5, 0.1, 0.9)))


def time_interleaved(
    calls: Mapping[str, Sequence[Callable[[], object]]], repeats: int = 20
) -> dict[str, Spread]:
    """Times several implementations in turn: A B C A B C ..., so that drift meets all alike.

    calls: by name, the calls that make up one graph; they may rotate between buffers.
    """
    graphs = {name: _capture(sequence) for name, sequence in calls.items()}
    warm_up = 3
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(warm_up + repeats):
        for name, graph in graphs.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            samples[name].append(start.elapsed_time(stop) * 1e3 / len(calls[name]))
    spreads = {}
    for name, values in samples.items():
        values = sorted(values[warm_up:])
        spreads[name] = Spread(*(values[round(q * (repeats - 1))] for q in (0.5, 0.1, 0.9)))
    return spreads


def _capture(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph
