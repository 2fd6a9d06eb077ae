"""The paper's figures beside those measured here (arXiv 2510.08055).

Its servers were two H100s with tensor parallelism of 2 and trained weights; so changes are compared,
not figures. Chunked prefill there is chunks of 512 tokens in mixed batches.
"""

from __future__ import annotations

from typing import NamedTuple

from layered_sglang.bench.report.data import Results
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.spec.system import sglang_s_schedule
from layered_sglang.bench.spec.target import Target
from layered_sglang.bench.table import points


class Figure(NamedTuple):
    """One figure of the paper.

    Attributes:
        metric: ours that it is compared with.
        said: as the paper gives it, chunked → layered.
        change: of it, a share.
    """

    metric: str
    heading: str
    said: str
    change: float


def _figure(
    metric: str, heading: str, chunked: float, layered: float, unit: str, digits: int = 2
) -> Figure:
    said = f"{chunked:.{digits}f} → {layered:.{digits}f} {unit}"
    return Figure(metric, heading, said, layered / chunked - 1)


#: (model preset, workload's name up to a hyphen) -> its figures.
FIGURES = {
    ("qwen3-30b-a3b", "arxiv"): (
        _figure("mean_ttft_ms", "TTFT mean, at 1.3/s", 2.80, 1.24, "s"),
        _figure("p99_ttft_ms", "TTFT P99, at 1.3/s", 8.65, 4.10, "s"),
        Figure("mean_itl_ms", "TBT mean, at 1.3/s", "", -0.35),
        Figure("p99_itl_ms", "TBT P99, at 1.3/s", "", -0.27),
        _figure("mean_e2e_latency_ms", "E2E of one request", 9.4, 5.5, "s", 1),
        Figure("mj_per_token", "energy a token, at equal rate", "", -0.085),
        _figure("expert_gb_per_request", "expert weights, 100 requests", 35.6, 21.7, "TB", 1),
    ),
    ("qwen3-30b-a3b", "sharegpt"): (
        _figure("expert_gb_per_request", "expert weights, 100 requests", 28.5, 25.1, "TB", 1),
    ),
    ("gpt-oss-20b", "arxiv"): (
        Figure("mj_per_token", "energy a token, at equal rate", "", -0.085),
    ),
}

#: The same -> a target, and the highest rates within it, each with its energy.
RATES = {
    ("qwen3-30b-a3b", "arxiv"): (Target(10, 125), "1.3 → 1.6/s (56.6 → 44.2 mJ a token)"),
    ("gpt-oss-20b", "arxiv"): (Target(10, 100), "2.1 → 2.7/s (37.4 → 29.8 mJ a token)"),
}


#: The paper's chunked prefill: tokens a chunk, decode rows beside them.
CHUNKED = (512, True)

#: Of chunked prefill with chunks of 2048 tokens to that with 512, on arXiv lengths.
CHUNKS = (
    _figure("expert_gb_per_request", "expert weights a request", 955, 304, "GB", 0),
    _figure("mj_per_token", "energy a token", 60.2, 32.4, "mJ", 1),
    _figure("p99_itl_ms", "TBT P99", 48, 129, "ms", 0),
)


def chunks_beside_the_paper(results: Results) -> list[list[str]]:
    """Cells: what longer chunks change, the paper's and ours; empty where the two were not measured."""
    settings = {
        sglang_s_schedule(system): system["name"]
        for system in results.scenario["systems"]
        if system["kind"] == "stock"
    }
    short, long = settings.get(CHUNKED), settings.get((2048, True))
    if short is None or long is None or results.scenario["model"]["preset"] != "qwen3-30b-a3b":
        return []
    columns = [
        point
        for point in points(results.summary)
        if {short, long} <= set(results.at(point)) and _kind(point) == "arxiv"
    ]
    if not columns:
        return []
    cells = [["", "the paper", "change", *(point.short for point in columns)]]
    for figure in CHUNKS:
        changes = [_change(results, figure.metric, short, long, point) for point in columns]
        row = [f"chunks 512 → 2048: {figure.heading}", figure.said, f"{figure.change:+.0%}"]
        cells.append(row + changes)
    return cells


def beside_the_paper(results: Results) -> list[list[str]]:
    """Cells: a row for each of the paper's figures, a column for each point and layered system.

    Changes are to the paper's setting of chunked prefill, or else to the scenario's first stock system.
    Numbers of layer groups are left out: the paper's grow with the prompt. Empty where the paper has
    nothing comparable.
    """
    systems = results.scenario["systems"]
    stock = [s for s in systems if s["kind"] == "stock"]
    alike = [s for s in stock if sglang_s_schedule(s) == CHUNKED]
    base = next((s["name"] for s in [*alike, *stock]), None)
    ours = [
        s["name"]
        for s in systems
        if s["kind"] == "layered" and "num_layer_groups" not in s["planning"]
    ]
    columns = [
        (point, name)
        for point in points(results.summary)
        if base in results.at(point) and _figures(results, point)
        for name in ours
        if name in results.at(point)
    ]
    if base is None or not columns:
        return []
    cells = [["", "the paper", "change", *(f"{name}, {point.short}" for point, name in columns)]]
    for workload in dict.fromkeys(_kind(point) for point, _ in columns):
        for figure in FIGURES[results.scenario["model"]["preset"], workload]:
            row = [f"{workload}: {figure.heading}", figure.said or "–", f"{figure.change:+.0%}"]
            row += [
                _change(results, figure.metric, base, name, point)
                if _kind(point) == workload
                else ""
                for point, name in columns
            ]
            cells.append(row)
    return cells


def paper_s_rates(results: Results, workload: str) -> list[str]:
    """A row for the table of rates within the targets; empty where the paper has none."""
    known = RATES.get((results.scenario["model"]["preset"], _kind(Point(workload, None))))
    if known is None or known[0] not in results.targets:
        return []
    told = [known[1] if target == known[0] else "" for target in results.targets]
    return [f"{workload}, the paper: chunked → layered", *told]


def _kind(point: Point) -> str:
    """``arxiv-shaped`` has the lengths of ``arxiv``."""
    return point.workload.split("-")[0]


def _figures(results: Results, point: Point) -> tuple[Figure, ...]:
    return FIGURES.get((results.scenario["model"]["preset"], _kind(point)), ())


def _change(results: Results, metric: str, base: str, name: str, point: Point) -> str:
    before = results.metrics(base, point).get(metric)
    after = results.metrics(name, point).get(metric)
    return f"{after / before - 1:+.0%}" if before and after is not None else "–"
