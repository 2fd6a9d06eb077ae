"""Which pictures a report has, from its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layered_sglang.bench.report.bars import energy_charts, expert_charts
from layered_sglang.bench.report.chart import Chart, Series
from layered_sglang.bench.report.data import Record, Results
from layered_sglang.bench.report.iterations import iteration_charts
from layered_sglang.bench.report.trade_off import trade_off_charts
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.summary import attainment, keeps, percentile
from layered_sglang.bench.table import points

#: Points of a distribution's curve.
CDF_POINTS = 200


def charts(results: Results) -> list[Chart]:
    """All pictures that the results have something for."""
    made = []
    for point in points(results.summary):
        made += _distributions(results, point)
    for workload in dict.fromkeys(point.workload for point in points(results.summary)):
        made += [*_pareto(results, workload), *_attainment(results, workload)]
    made += trade_off_charts(results)
    made += [*energy_charts(results), *expert_charts(results)]
    for point in points(results.summary)[:1]:
        made += _token_timeline(results, point)
    return made + iteration_charts(results)


def _distributions(results: Results, point: Point) -> list[Chart]:
    """Cumulative distributions of TTFT and ITL at one point."""
    kinds: Sequence[tuple[str, str, Callable[[Record], Sequence[float]], bool]] = (
        ("ttft", "TTFT, s", lambda row: [row["ttft_s"]], False),
        ("itl", "ITL, ms", lambda row: [1000 * gap for gap in row["itls_s"]], True),
    )
    made = []
    for kind, label, read, log in kinds:
        series = []
        for colour, name in enumerate(results.names):
            rows = [row for row in results.rows_of(name, point) if not row["error"]]
            values = [v for row in rows for v in read(row) if v > 0 or not log]
            if values:
                series.append(Series(name, _cdf(values), colour))
        if not series:
            continue
        share = f"{kind.upper()}: share of {'requests' if kind == 'ttft' else 'tokens'}"
        made.append(
            Chart(
                name=f"cdf-{kind}{point.suffix}",
                title=f"{share} {point.title}".rstrip(),
                x_label=label,
                y_label="share that took at most this",
                series=series,
                x_log=log,
            )
        )
    return made


def _cdf(values: Sequence[float]) -> list[tuple[float, float]]:
    ranked = sorted(values)
    steps = range(CDF_POINTS + 1)
    return [(percentile(ranked, 100 * i / CDF_POINTS), i / CDF_POINTS) for i in steps]


def _pareto(results: Results, workload: str) -> list[Chart]:
    """Mean TTFT against P99 ITL: a system's line goes from rate to rate."""
    series: list[Series] = []
    for name in _swept(results, workload):
        places, labels = [], []
        for point in _points_of(results, workload):
            values = results.metrics(name, point)
            if "mean_ttft_ms" in values and "p99_itl_ms" in values:
                places.append((values["mean_ttft_ms"] / 1000, values["p99_itl_ms"]))
                labels.append(name if point.rate is None else f"{point.rate:g}/s")
        if places:
            series.append(Series(name, places, len(series), True, labels))
    if not series:
        return []
    return [
        Chart(
            name="pareto" + Point(workload, None).suffix,
            title=f"{workload} TTFT and ITL: lower left is better".lstrip(),
            x_label="mean TTFT, s",
            y_label="P99 ITL, ms",
            series=series,
            note="Medians over repeats.",
        )
    ]


def _swept(results: Results, workload: str) -> list[str]:
    """Systems that were measured at several rates; all of them where none was."""
    found = _points_of(results, workload)
    names = [n for n in results.names if sum(n in results.at(point) for point in found) > 1]
    return names or results.names


def _points_of(results: Results, workload: str) -> list[Point]:
    return [point for point in points(results.summary) if point.workload == workload]


def _attainment(results: Results, workload: str) -> list[Chart]:
    """The share of requests within each target, against the rate."""
    swept = [point for point in _points_of(results, workload) if point.rate is not None]
    if len(swept) < 2:
        return []
    made = []
    for number, target in enumerate(results.targets):
        series = []
        for colour, name in enumerate(_swept(results, workload)):
            places = [
                (point.rate or 0.0, 100 * attainment(rows, target))
                for point in swept
                if (rows := results.rows_of(name, point))
            ]
            if places:
                series.append(Series(name, places, colour, True))
        made.append(
            Chart(
                name=f"attainment-{number}{Point(workload, None).suffix}",
                title=f"{workload} Requests within {target.name}".lstrip(),
                x_label="requests per second",
                y_label="% of requests",
                series=series,
            )
        )
    return made


def _token_timeline(results: Results, point: Point) -> list[Chart]:
    """One request's tokens under each system: the one that waited longest between two of them."""
    names = results.at(point)
    rows = {name: _first_repeat(results, name, point) for name in names}
    common = set.intersection(*(set(found) for found in rows.values())) if rows else set()
    several = [index for index in common if rows[names[0]][index]["itls_s"]]
    if not several:
        return []
    index = max(several, key=lambda i: max(rows[names[0]][i]["itls_s"]))
    series = []
    for colour, name in enumerate(names):
        row = rows[name][index]
        points, at = [(0.0, 0.0), (row["ttft_s"], 0.0), (row["ttft_s"], 1.0)], row["ttft_s"]
        for count, gap in enumerate(row["itls_s"], start=1):
            points += [(at + gap, float(count)), (at + gap, count + 1.0)]
            at += gap
        series.append(Series(name, points, colour))
    row = rows[names[0]][index]
    kept = [t.name for t in results.targets if keeps(row, t)]
    return [
        Chart(
            name="token-timeline",
            title=f"One request's tokens ({row['prompt_tokens']} prompt tokens)",
            x_label="seconds since it was sent",
            y_label="tokens received",
            series=series,
            note=f"The request with the longest wait between two tokens under {names[0]}"
            + (f", where it keeps {'; '.join(kept)}." if kept else "."),
        )
    ]


def _first_repeat(results: Results, name: str, point: Point) -> dict[int, Record]:
    rows = [row for row in results.rows_of(name, point) if not row["error"]]
    first = min((row["repeat"] for row in rows), default=0)
    return {row["index"]: row for row in rows if row["repeat"] == first}
