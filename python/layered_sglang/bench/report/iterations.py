"""Iterations of a run, from the trace that its server wrote: who ran which layers when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from layered_sglang.bench.report.chart import PALETTE, Box, Chart
from layered_sglang.bench.report.data import Record, Results
from layered_sglang.bench.store import Store
from layered_sglang.bench.summary import percentile

#: Iterations in the picture.
SHOWN = 60
#: Prompts are coloured in turn; the last colour is for decode rows.
DECODE = len(PALETTE) - 1
#: An iteration that seems longer was followed by idle time.
MOST_SECONDS = 5.0


@dataclass(frozen=True)
class Iteration:
    """One iteration.

    Attributes:
        start: seconds, on the server's monotonic clock.
        seconds: until its result, or until the next one was launched.
        kind: decode, prefill, merged, cohort or mixed.
        prompts: rids whose prompt tokens ran.
        tokens: how many prompt tokens.
        layers: [start, end) that these passed; None is all.
        decode: number of decode rows.
    """

    start: float
    seconds: float
    kind: str
    prompts: tuple[str, ...]
    tokens: int
    layers: tuple[int, int] | None
    decode: int


def read_iterations(run: Record) -> list[Iteration]:
    """The iterations of a run, by their launch; empty where its server wrote none."""
    if not run.get("trace"):
        return []
    begin, end = run["monotonic"]
    lines = [
        line
        for line in Store(Path(run["folder"])).lines(f"traces/{run['trace']}")
        if begin <= line.get("time", -1.0) <= end
    ]
    lines.sort(key=lambda line: line["time"])
    following = [*(line["time"] for line in lines[1:]), end][: len(lines)]
    return [_iteration(line, after) for line, after in zip(lines, following, strict=True)]


def _iteration(line: dict[str, Any], after: float) -> Iteration:
    # Later versions of the trace say how long it took.
    seconds = line.get("seconds")
    if not isinstance(seconds, (int, float)):
        seconds = after - line["time"]
    layers = line.get("layers")
    cohort = line.get("cohort") or []
    return Iteration(
        start=line["time"],
        seconds=min(float(seconds), MOST_SECONDS),
        kind=line.get("kind", ""),
        prompts=tuple(entry[0] for entry in cohort),
        tokens=sum(entry[2] for entry in cohort),
        layers=None if layers is None else (layers[0], layers[1]),
        decode=len(line.get("decode") or []),
    )


def iteration_table(results: Results) -> list[list[str]]:
    """Cells: how many iterations of each kind, and their milliseconds; empty without a trace."""
    found: dict[tuple[str, str], list[Iteration]] = {}
    for run in results.runs:
        for iteration in read_iterations(run):
            found.setdefault((run["system"], iteration.kind), []).append(iteration)
    if not found:
        return []
    cells = [["system", "iterations", "number", "median, ms", "P90, ms", "prompt tokens, mean"]]
    for (system, kind), iterations in found.items():
        times = [1000 * iteration.seconds for iteration in iterations]
        tokens = sum(iteration.tokens for iteration in iterations) / len(iterations)
        cells.append(
            [
                *(system, kind, str(len(iterations)), f"{median(times):.1f}"),
                *(f"{percentile(times, 90):.1f}", f"{tokens:.0f}"),
            ]
        )
    return cells


def iteration_charts(results: Results) -> list[Chart]:
    """For each system with a trace: the layers of some iterations of its first run."""
    made = []
    for name in results.names:
        run = next(run for run in results.runs if run["system"] == name)
        shown = busiest(read_iterations(run))
        if shown:
            made.append(_chart(name, shown))
    return made


def busiest(iterations: Sequence[Iteration]) -> Sequence[Iteration]:
    """The SHOWN iterations in a row with the most prompts and layer groups among them."""
    if not any(iteration.prompts for iteration in iterations):
        return ()
    weights = [len(i.prompts) * (1 if i.layers is None else 2) for i in iterations]
    best = max(
        range(max(1, len(iterations) - SHOWN + 1)), key=lambda at: sum(weights[at : at + SHOWN])
    )
    return iterations[best : best + SHOWN]


def _chart(name: str, iterations: Sequence[Iteration]) -> Chart:
    layers = max((i.layers[1] for i in iterations if i.layers), default=1)
    origin = iterations[0].start
    colours: dict[str, int] = {}
    boxes = []
    for iteration in iterations:
        start, end = (
            1000 * (t - origin) for t in (iteration.start, iteration.start + iteration.seconds)
        )
        if iteration.decode:
            text = f"{iteration.decode} decode rows through all layers, {end - start:.1f} ms"
            boxes.append(Box(start, end, 0, layers, DECODE, text, faint=True))
        if iteration.prompts:
            first = iteration.prompts[0]
            colour = colours.setdefault(first, len(colours) % DECODE)
            low, high = iteration.layers or (0, layers)
            text = f"{iteration.tokens} prompt tokens of {len(iteration.prompts)} requests, layers "
            text += f"{low} to {high - 1}, {end - start:.1f} ms"
            boxes.append(Box(start, end, low, high, colour, text))
    return Chart(
        name=f"iterations-{name}",
        title=f"{name}: who ran which layers when",
        x_label="ms",
        y_label="layer" if layers > 1 else "all layers",
        boxes=boxes,
        legend=[("decode rows", DECODE), ("prompt tokens, a colour a cohort", 0)],
        note=f"{len(iterations)} iterations in a row of the first run, those with the most prompts.",
    )
