"""The picture that matters at one point: each system's TTFT against its ITL, one value of it varied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from layered_sglang.bench.report.chart import Chart, Series
from layered_sglang.bench.report.data import Results
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.table import points

#: Values that systems on one server vary, as flags and in ``planning``, and what a line is called.
VARIED = {
    "itl_slo_ms": "by ITL target, ms",
    "num_layer_groups": "by layer groups",
    "layer_group_tokens": "by tokens a layer group",
    "chunked_prefill_size": "by chunk size",
}


class Line(NamedTuple):
    """What systems have in common that differ in one value.

    Attributes:
        value: the one they differ in, empty for a system by itself.
        rest: what else they plan alike.
    """

    server: str
    value: str
    rest: str


def trade_off_charts(results: Results) -> list[Chart]:
    """Mean TTFT and P99 ITL at each point with several systems."""
    return [
        chart
        for point in points(results.summary)
        if len(results.at(point)) > 1 and (chart := _chart(results, point)) is not None
    ]


def varied(results: Results, point: Point) -> dict[Line, list[tuple[float, str]]]:
    """The values of each line's systems that were measured at a point, ascending, with their names."""
    lines: dict[Line, list[tuple[float, str]]] = {}
    for system in results.scenario["systems"]:
        values = results.metrics(system["name"], point)
        if "mean_ttft_ms" in values and "p99_itl_ms" in values:
            line, at = _varied(system)
            lines.setdefault(line, []).append((at, system["name"]))
    return {line: sorted(found) for line, found in lines.items()}


def _chart(results: Results, point: Point) -> Chart | None:
    lines = varied(results, point)
    if not lines:
        return None
    series, kinds = [], {s["name"]: s["kind"] for s in results.scenario["systems"]}
    for colour, (line, found) in enumerate(lines.items()):
        several = len(found) > 1
        name = f"{kinds[line.server]}, {VARIED[line.value]}" if several else found[0][1]
        labels = [f"{at:g}" for at, _ in found] if several else [found[0][1]]
        figures = [results.metrics(name, point) for _, name in found]
        places = [(values["mean_ttft_ms"] / 1000, values["p99_itl_ms"]) for values in figures]
        series.append(Series(name, places, colour, True, labels))
    return Chart(
        name=f"trade-off{point.suffix}",
        title=f"TTFT and ITL, {point.title}".rstrip(", ") + ": lower left is better",
        x_label="mean TTFT, s",
        y_label="P99 ITL, ms",
        series=series,
        note="Medians over repeats; a line joins what one server measured with one value varied.",
    )


def _varied(system: Mapping[str, Any]) -> tuple[Line, float]:
    """The line that a system is on, and its place there."""
    for name in VARIED:
        value = system["planning"].get(name)
        if value is not None:
            rest = {key: v for key, v in system["planning"].items() if key != name}
            return Line(system["server"], name, str(rest or "")), float(value)
    if not system["planning"]:
        flags = list(system["flags"])
        for name in VARIED:
            flag = "--" + name.replace("_", "-")
            if flag in flags[:-1]:
                return Line(system["server"], name, ""), float(flags[flags.index(flag) + 1])
    return Line(system["name"], "", ""), 0.0
