"""The report's sections of tables, lists and pictures, the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layered_sglang.bench.report.ablation import ablations
from layered_sglang.bench.report.chart import Chart
from layered_sglang.bench.report.data import Results
from layered_sglang.bench.report.described import commands, described, machine, model_note
from layered_sglang.bench.report.iterations import iteration_table
from layered_sglang.bench.report.overview import ATTAINED, overview, within_targets
from layered_sglang.bench.report.paper import beside_the_paper, chunks_beside_the_paper
from layered_sglang.bench.report.ratios import ratios
from layered_sglang.bench.table import points, table

_RATES = (
    f"The highest of the measured rates at which {ATTAINED:.0%} of the requests were within a target; "
    "≥: there was no higher one."
)
_RATIOS = (
    "Ratios within a repeat: the median over repeats (lowest … highest). Below 1 layered prefill is "
    "better. All systems got the same requests."
)
_PAPER = (
    "Changes that layered prefill makes: in the paper (arXiv 2510.08055: two H100s, tensor parallelism "
    "of 2, trained weights) to mixed chunks of 512 tokens, here to the same, or else to the first of "
    "SGLang's settings."
)
#: Tables over all cells: heading, what to know, how it is made; empty ones are left out.
COMPARISONS = (
    ("Overview", "", overview),
    ("Layered prefill over SGLang's settings", _RATIOS, ratios),
    ("Rates within the targets", _RATES, within_targets),
    ("Beside the paper", _PAPER, beside_the_paper),
    ("SGLang's chunk sizes beside the paper", "", chunks_beside_the_paper),
    ("One value varied", "", ablations),
)


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order."""

    title: str
    paragraphs: Sequence[str] = ()
    cells: Sequence[Sequence[str]] = ()
    charts: Sequence[Chart] = ()
    items: Sequence[str] = ()
    code: Sequence[str] = field(default_factory=tuple)


def sections(results: Results, charts: Sequence[Chart]) -> list[Section]:
    """The report from top to bottom."""
    made = [*_comparisons(results)]
    for point in points(results.summary):
        names = [f"{name}{point.suffix}" for name in ("trade-off", "cdf-ttft", "cdf-itl")]
        own = [c for c in charts if c.name in names]
        cells = table(results.summary, point)
        text = _reading(results, cells[0][1])
        made.append(Section(f"Results {point.title}".rstrip(), [text], cells, own))
    shown = {chart.name for section in made for chart in section.charts}
    rest = [chart for chart in charts if chart.name not in shown]
    trade = [c for c in rest if c.name.startswith(("pareto", "attainment"))]
    if trade or results.searches:
        made.append(Section("TTFT against ITL, and load", charts=trade, cells=_searches(results)))
    named = (
        ("Energy", "energy"),
        ("Expert weights", "experts"),
        ("One request", "token-timeline"),
    )
    for title, name in named:
        own = [chart for chart in rest if chart.name.startswith(name)]
        if own:
            made.append(Section(title, charts=own))
    own = [chart for chart in rest if chart.name.startswith("iterations-")]
    cells = iteration_table(results)
    if own or cells:
        made.append(Section("Iterations", cells=cells, charts=own))
    return made + _circumstances(results)


def tables(results: Results) -> list[Section]:
    """The report's tables over all cells, without pictures: for a page of one's own."""
    made = _comparisons(results)
    if results.searches:
        made.append(Section("Searches", cells=_searches(results)))
    return made + _circumstances(results)


def _comparisons(results: Results) -> list[Section]:
    made = [Section("What was measured", items=described(results))]
    for title, text, make in COMPARISONS:
        cells = make(results)
        if len(cells) > 1:
            made.append(Section(title, [text] * bool(text), cells))
    return made


def _circumstances(results: Results) -> list[Section]:
    failed = [f"{failure['system']}: {failure['error']}" for failure in results.failures]
    return [
        *([Section("What failed", items=failed)] if failed else []),
        Section("Machine and versions", items=machine(results)),
        Section("Commands", model_note(results), code=commands(results)),
    ]


def _reading(results: Results, base: str) -> str:
    several = any(record["repeats"] > 1 for record in results.summary)
    spread = "Medians over repeats (lowest … highest). " if several else "One run each. "
    return spread + f"Percentages are differences to {base}."


def _searches(results: Results) -> list[list[str]]:
    if not results.searches:
        return []
    cells = [["system", "workload", "repeat", "target", "highest rate within it", "tried"]]
    for search in results.searches:
        rate = "none tried" if search["rate"] is None else f"{search['rate']:.2f}"
        tried = ", ".join(f"{r} {'yes' if kept else 'no'}" for r, kept in search["tried"].items())
        cells.append(
            [
                *(search["system"], search["workload"] or "–", str(search["repeat"] + 1)),
                *(search["target"], rate, tried),
            ]
        )
    return cells
