"""One value varied: chunk sizes, numbers of layer groups, targets, in ascending order."""

from __future__ import annotations

from layered_sglang.bench.report.data import Results
from layered_sglang.bench.report.overview import COLUMNS, describe_cell
from layered_sglang.bench.report.trade_off import VARIED, varied
from layered_sglang.bench.table import points

#: Systems that make a table.
LEAST = 3


def ablations(results: Results) -> list[list[str]]:
    """Cells: a row for each point, value and system; empty where fewer than LEAST differ in one."""
    known = {name for record in results.summary for name in record["metrics"]}
    columns = [column for column in COLUMNS if column[0] in known]
    kinds = {system["name"]: system["kind"] for system in results.scenario["systems"]}
    cells = []
    for point in points(results.summary):
        for line, members in varied(results, point).items():
            if len(members) < LEAST:
                continue
            for at, name in members:
                metrics = results.figures(name, point)
                title = f"{point.short} {kinds[name]} {VARIED[line.value]}: {at:g}".strip()
                cells.append(
                    [title, *(describe_cell(metrics.get(key), d, f) for key, _, d, f in columns)]
                )
    return [["", *(heading for _, heading, _, _ in columns)], *cells] if cells else []
