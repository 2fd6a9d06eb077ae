"""The summary as a table: a row a figure, a column a system, differences to the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from layered_sglang.bench.spec.cells import Point

#: metric, heading, digits, factor. Those that were not measured are left out.
LINES = (
    ("mean_ttft_ms", "TTFT mean, ms", 0, 1.0),
    ("median_ttft_ms", "TTFT P50, ms", 0, 1.0),
    ("p90_ttft_ms", "TTFT P90, ms", 0, 1.0),
    ("p99_ttft_ms", "TTFT P99, ms", 0, 1.0),
    ("mean_itl_ms", "ITL mean, ms", 1, 1.0),
    ("median_itl_ms", "ITL P50, ms", 1, 1.0),
    ("p90_itl_ms", "ITL P90, ms", 1, 1.0),
    ("p99_itl_ms", "ITL P99, ms", 1, 1.0),
    ("max_itl_ms", "ITL max, ms", 0, 1.0),
    ("mean_tpot_ms", "TPOT mean, ms", 1, 1.0),
    ("p99_tpot_ms", "TPOT P99, ms", 1, 1.0),
    ("mean_e2e_latency_ms", "E2E mean, s", 2, 0.001),
    ("median_e2e_latency_ms", "E2E P50, s", 2, 0.001),
    ("p99_e2e_latency_ms", "E2E P99, s", 2, 0.001),
    ("request_throughput", "requests/s", 2, 1.0),
    ("output_throughput", "output tokens/s", 1, 1.0),
    ("total_throughput", "tokens/s", 0, 1.0),
    ("attainment", "within", 1, 100.0),
    ("goodput", "goodput, requests/s:", 2, 1.0),
    ("mj_per_token", "energy, mJ/token", 1, 1.0),
    ("mj_per_output_token", "energy, mJ/output token", 0, 1.0),
    ("expert_gb", "expert weights loaded, GB", 1, 1.0),
    ("expert_gb_prompts", "… in iterations with prompts, GB", 1, 1.0),
    ("expert_gb_decode", "… in decode iterations, GB", 1, 1.0),
    ("expert_gb_per_request", "… per request, GB", 2, 1.0),
    ("mean_power_w", "power mean, W", 0, 1.0),
    ("mean_sm_mhz", "SM clock mean, MHz", 0, 1.0),
    ("mean_kv_use", "KV pool in use, mean %", 1, 100.0),
    ("max_running_requests", "running requests, max", 0, 1.0),
    ("completed", "answered", 0, 1.0),
    ("requests", "sent", 0, 1.0),
    ("max_sent_late_ms", "sent after their time, max ms", 1, 1.0),
)


def points(summary: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The points of a summary: workloads in the order of their first run, their rates ascending."""
    found = dict.fromkeys(Point.of(record) for record in summary)
    order = list(dict.fromkeys(point.workload for point in found))
    return sorted(found, key=lambda point: (order.index(point.workload), point.rate or -1.0))


def table(summary: Sequence[Mapping[str, Any]], point: Point) -> list[list[str]]:
    """Cells of the table at one point, the headings first.

    A cell is the median over repeats, its spread (lowest … highest) where there are several, and
    behind the first system the difference to that one.
    """
    records = [record for record in summary if Point.of(record) == point]
    if not records:
        return []
    cells = [["", *(record["system"] for record in records)]]
    for prefix, heading, digits, factor in LINES:
        for name in records[0]["metrics"]:
            if name.split(":")[0] != prefix:
                continue
            title = heading + name[len(prefix) + 1 :]
            if prefix == "attainment":
                title += ", %"
            row = [title]
            for record in records:
                row.append(_cell(record["metrics"].get(name), records, name, digits, factor))
            cells.append(row)
    return cells


def _cell(
    value: Mapping[str, float] | None,
    records: Sequence[Mapping[str, Any]],
    name: str,
    digits: int,
    factor: float,
) -> str:
    if value is None:
        return "–"
    text = f"{value['median'] * factor:.{digits}f}"
    if value["low"] != value["high"]:
        low, high = (f"{value[end] * factor:.{digits}f}" for end in ("low", "high"))
        if low != high:
            text += f" ({low} … {high})"
    base = records[0]["metrics"].get(name)
    if base is not None and value is not base and base["median"] and name not in ("requests",):
        text += f"  {100 * (value['median'] / base['median'] - 1):+.0f}%"
    return text


def as_text(cells: Sequence[Sequence[str]]) -> list[str]:
    """The table in columns for a terminal."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def as_markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    """The table for Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|" + " --- |" * len(cells[0]))
    return lines
