"""Layered prefill over each of SGLang's settings, repeat by repeat: what the targets are about."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from layered_sglang.bench.report.data import Results
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.summary import summarise
from layered_sglang.bench.table import points

#: metric, heading.
COLUMNS = (
    ("mean_ttft_ms", "TTFT mean"),
    ("p99_ttft_ms", "TTFT P99"),
    ("median_itl_ms", "ITL P50"),
    ("p99_itl_ms", "ITL P99"),
    ("mean_e2e_latency_ms", "E2E mean"),
    ("mj_per_token", "energy a token"),
    ("expert_gb_per_request", "expert weights a request"),
)
#: repeat -> system -> metric -> value.
ByRepeat = Mapping[int, Mapping[str, Mapping[str, float]]]


def ratios(results: Results) -> list[list[str]]:
    """Cells: a row for each point and pair of a layered system and one of SGLang's settings.

    Only pairs that share as many repeats as any at this point do. A cell is the median over these
    repeats of the ratio within one, and its lowest and highest.
    """
    kinds = {system["name"]: system["kind"] for system in results.scenario["systems"]}
    rows = []
    for point in points(results.summary):
        measured = _by_repeat(results, point)
        shared = {
            (ours, theirs): sorted(
                repeat for repeat, systems in measured.items() if {ours, theirs} <= set(systems)
            )
            for theirs in results.at(point)
            if kinds[theirs] == "stock"
            for ours in results.at(point)
            if kinds[ours] == "layered"
        }
        most = max(map(len, shared.values()), default=0)
        for (ours, theirs), repeats in shared.items():
            if repeats and len(repeats) == most:
                found = {key: _ratios(measured, ours, theirs, repeats, key) for key, _ in COLUMNS}
                rows.append((f"{point.short} {ours} / {theirs}".strip(), len(repeats), found))
    if not rows:
        return []
    columns = [(key, name) for key, name in COLUMNS if any(found[key] for _, _, found in rows)]
    cells = [["", "repeats", *(name for _, name in columns)]]
    for title, number, found in rows:
        cells.append([title, str(number), *(_cell(found[key]) for key, _ in columns)])
    return cells


def _by_repeat(results: Results, point: Point) -> ByRepeat:
    runs = [run for run in results.runs if Point.of(run) == point]
    return {
        repeat: {
            record["system"]: {key: value["median"] for key, value in record["metrics"].items()}
            for record in summarise(results.rows, [r for r in runs if r["repeat"] == repeat], ())
        }
        for repeat in {run["repeat"] for run in runs}
    }


def _ratios(
    measured: ByRepeat, ours: str, theirs: str, repeats: list[int], key: str
) -> list[float]:
    """Empty where a repeat lacks the figure."""
    pairs = [(measured[r][ours].get(key), measured[r][theirs].get(key)) for r in repeats]
    found = [a / b for a, b in pairs if a is not None and b]
    return found if len(found) == len(pairs) else []


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    middle, low, high = (f"{v:.2f}" for v in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} … {high})"
