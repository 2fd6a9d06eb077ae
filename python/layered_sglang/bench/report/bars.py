"""Figures as bars, a picture for each workload: energy, expert weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from layered_sglang.bench.report.chart import PALETTE, Box, Chart
from layered_sglang.bench.report.data import Results
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.table import points


class Bars(NamedTuple):
    """What a picture shows.

    Attributes:
        keys: metrics, on top of one another.
        per: a metric that they are divided by, or None.
    """

    name: str
    title: str
    unit: str
    note: str
    keys: Sequence[str]
    per: str | None = None


ENERGY = Bars(
    "energy",
    "Energy of the GPUs, mJ per prompt and output token",
    "mJ per token",
    "NVML's counter over the run, idle power included.",
    ("mj_per_token",),
)
EXPERTS = Bars(
    "experts",
    "Expert weights loaded per request, GB",
    "GB",
    "Full colour: iterations with prompt tokens in some layer; pale: decode alone. One GPU.",
    ("expert_gb_prompts", "expert_gb_decode"),
    "completed",
)


def energy_charts(results: Results) -> list[Chart]:
    """Joules a token, a bar for each system and rate."""
    return _charts(results, ENERGY)


def expert_charts(results: Results) -> list[Chart]:
    """Expert weights loaded per request."""
    return _charts(results, EXPERTS)


def _charts(results: Results, bars: Bars) -> list[Chart]:
    workloads = dict.fromkeys(point.workload for point in points(results.summary))
    return [chart for name in workloads if (chart := _chart(results, bars, name)) is not None]


def _chart(results: Results, bars: Bars, workload: str) -> Chart | None:
    """None where the workload's runs lack the figures."""
    found = [point for point in points(results.summary) if point.workload == workload]
    names = _shown(results, found)
    boxes: list[Box] = []
    ticks = []
    place = 0.0
    for point in found:
        first = place
        for colour, name in enumerate(names):
            made = _bar(results, bars, name, point, place, colour)
            boxes += made
            place += bool(made)
        if place > first:
            ticks.append(((first + place) / 2, point.short))
            place += 1  # between two points
    if not boxes:
        return None
    drawn = {box.colour for box in boxes}
    return Chart(
        name=bars.name + Point(workload, None).suffix,
        title=f"{workload}: {bars.title}" if workload else bars.title,
        x_label="",
        y_label=bars.unit,
        boxes=boxes,
        x_ticks=ticks,
        legend=[(name, i) for i, name in enumerate(names) if i in drawn],
        note=bars.note,
    )


def _shown(results: Results, found: Sequence[Point]) -> list[str]:
    """Systems of these points; without numbers of layer groups where there are too many colours."""
    names = [name for name in results.names if any(name in results.at(point) for point in found)]
    if len(names) <= len(PALETTE):
        return names
    planning = {system["name"]: system["planning"] for system in results.scenario["systems"]}
    return [name for name in names if "num_layer_groups" not in planning[name]]


def _bar(
    results: Results, bars: Bars, name: str, point: Point, place: float, colour: int
) -> list[Box]:
    """A system's bar at ``place``, in as many parts as there are keys."""
    values = results.metrics(name, point)
    if bars.keys[0] not in values:
        return []
    boxes, foot = [], 0.0
    share = values[bars.per] if bars.per is not None else 1.0
    for number, key in enumerate(bars.keys):
        top = foot + values[key] / share
        text = f"{name}, {point.short}".rstrip(", ") + f": {top - foot:.1f}"
        boxes.append(Box(place + 0.1, place + 0.9, foot, top, colour, text, number > 0))
        foot = top
    return boxes
