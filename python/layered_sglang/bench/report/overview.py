"""All cells in one table, and the highest rates within each target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layered_sglang.bench.report.data import Results
from layered_sglang.bench.report.paper import paper_s_rates
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.table import points

#: metric, heading, digits, factor.
COLUMNS = (
    ("mean_ttft_ms", "TTFT mean, ms", 0, 1.0),
    ("p99_ttft_ms", "P99", 0, 1.0),
    ("p99_ttft_ms: short prompts", "P99 of short prompts", 0, 1.0),
    ("median_itl_ms", "ITL P50, ms", 1, 1.0),
    ("p99_itl_ms", "P99", 1, 1.0),
    ("max_itl_ms", "max", 0, 1.0),
    ("mean_e2e_latency_ms", "E2E mean, s", 2, 0.001),
    ("mj_per_token", "mJ a token", 1, 1.0),
    ("expert_gb_per_request", "expert weights, GB a request", 0, 1.0),
)
#: A rate is within a target when this share of its requests is.
ATTAINED = 0.9


def overview(results: Results) -> list[list[str]]:
    """Cells: a row for each point and system with the number of its runs, its shares within the
    first two targets last."""
    known = {name for record in results.summary for name in record["metrics"]}
    columns = [column for column in COLUMNS if column[0] in known]
    for target in results.targets[:2]:
        columns.append((f"attainment: {target.name}", f"within {target.name}, %", 0, 100.0))
    cells = [["", "runs", *(heading for _, heading, _, _ in columns)]]
    for point in points(results.summary):
        for name in results.at(point):
            record = next(
                r for r in results.summary if r["system"] == name and Point.of(r) == point
            )
            cells.append(
                [
                    f"{point.short} {name}".strip(),
                    str(record["repeats"]),
                    *(describe_cell(record["metrics"].get(key), d, f) for key, _, d, f in columns),
                ]
            )
    return cells


def describe_cell(value: Mapping[str, Any] | None, digits: int, factor: float) -> str:
    """A median with its spread over repeats, or a dash."""
    if value is None:
        return "–"
    median, low, high = (f"{value[key] * factor:.{digits}f}" for key in ("median", "low", "high"))
    return median if low == high else f"{median} ({low} … {high})"


def within_targets(results: Results) -> list[list[str]]:
    """Cells: the highest measured rate at which 90% of the requests kept a target; empty without a
    workload at several rates."""
    if not results.targets:
        return []
    cells = [["highest rate measured within", *(target.name for target in results.targets)]]
    found = points(results.summary)
    for workload in dict.fromkeys(point.workload for point in found):
        swept = [p for p in found if p.workload == workload and p.rate is not None]
        for name in results.names:
            own = [point for point in swept if name in results.at(point)]
            if len(own) < 2:
                continue
            row = [f"{workload} {name}".strip()]
            for target in results.targets:
                key = f"attainment: {target.name}"
                kept = [p.rate for p in own if results.metrics(name, p).get(key, 0.0) >= ATTAINED]
                top = max((rate for rate in kept if rate is not None), default=None)
                whole = top is not None and top == max(p.rate or 0.0 for p in own)
                row.append("–" if top is None else f"{'≥ ' if whole else ''}{top:g}/s")
            cells.append(row)
        paper = paper_s_rates(results, workload)
        if paper and cells[-1][0].startswith(f"{workload} "):
            cells.append(paper)
    return cells if len(cells) > 1 else []
