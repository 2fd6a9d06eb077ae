"""Times GPU work by replaying a CUDA graph, so that the host's launch cost stays out."""

from __future__ import annotations

from collections.abc import Callable
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
