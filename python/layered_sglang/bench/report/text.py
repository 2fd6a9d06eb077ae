"""The report's words, the same for HTML and Markdown: sections of tables, lists and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layered_sglang.bench.report.ablation import ablations
from layered_sglang.bench.report.chart import Chart
from layered_sglang.bench.report.data import Results
from layered_sglang.bench.report.iterations import iteration_table
from layered_sglang.bench.report.overview import ATTAINED, overview, within_targets
from layered_sglang.bench.report.paper import beside_the_paper, chunks_beside_the_paper
from layered_sglang.bench.report.ratios import ratios
from layered_sglang.bench.table import points, table
from layered_sglang.model_zoo import PRESETS

#: What the routers of a preset's weights do.
ROUTERS = {
    "uniform": "as the weights have it, nearly uniform (a trained one reaches fewer experts)",
    "shaped": "shaped, so that 16, 32, 64 and 128 tokens reach about as many experts as with a "
    "trained one",
}

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
    made = [Section("What was measured", items=_what(results))]
    if len(results.summary) > 1:
        made.append(Section("Overview", cells=overview(results)))
    over = ratios(results)
    if over:
        made.append(Section("Layered prefill over SGLang's settings", [_RATIOS], over))
    rates = within_targets(results)
    if rates:
        made.append(Section("Rates within the targets", [_RATES], rates))
    paper = beside_the_paper(results)
    if paper:
        made.append(Section("Beside the paper", [_PAPER], paper))
    chunks = chunks_beside_the_paper(results)
    if chunks:
        made.append(Section("SGLang's chunk sizes beside the paper", cells=chunks))
    values = ablations(results)
    if values:
        made.append(Section("One value varied", cells=values))
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
    if results.failures:
        items = [f"{failure['system']}: {failure['error']}" for failure in results.failures]
        made.append(Section("What failed", items=items))
    made.append(Section("Machine and versions", items=_machine(results)))
    made.append(Section("Commands", _model_note(results), code=_commands(results)))
    return made


def _what(results: Results) -> list[str]:
    scenario = results.scenario
    model = scenario["model"]
    items = [f"Scenario {scenario['name']}" + f": {scenario['about']}" * bool(scenario["about"])]
    if model["preset"]:
        random = PRESETS[model["preset"]].random_weights if model["preset"] in PRESETS else False
        items.append(f"Model: {model['preset']}, {'random' if random else 'dummy'} weights")
    else:
        items.append(f"Model: {model['path']}")
    measured = {run["workload"] for run in results.runs}
    for name, workload in scenario["workloads"].items():
        if name in measured:
            items += _workload(f"{name}: " if name else "", workload, bool(model["preset"]))
    counts = {record["repeats"] for record in results.summary} or {0}
    repeats = "–".join(str(n) for n in sorted({min(counts), max(counts)}))
    life = (
        "one server at a time" if scenario["resident"] == "one" else "all servers at once, in turn"
    )
    items.append(
        f"Repeats: {repeats}, {scenario['repeats_per_start']} within one start of a server; {life}"
    )
    items += _warm_ups(results)
    if results.runs:
        items.append(f"Measured from {min(run['began'] for run in results.runs)}")
    return items


def _warm_ups(results: Results) -> list[str]:
    """One line for the systems whose runs came after the same warm-up."""
    found: dict[str, dict[str, dict]] = {}
    for run in results.runs:
        if run["warm_up"]:
            found.setdefault(run["system"], {})[str(run["warm_up"])] = run["warm_up"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, seen in found.items():
        alike.setdefault(tuple(seen), []).append(name)
    items = []
    for names in alike.values():
        rounds = found[names[0]].values()
        counts = sorted({len(seen["seconds"]) for seen in rounds})
        unstable = sum(not seen["stable"] for seen in rounds)
        end = "NOT alike at the end" if unstable else "alike at the end"
        several = f" in {len(rounds)} starts" if len(rounds) > 1 else ""
        if 0 < unstable < len(rounds):
            end += f" of {unstable}"
        number = "–".join(str(n) for n in sorted({counts[0], counts[-1]}))
        items.append(f"Warm-up of {', '.join(names)}: {number} rounds{several}, {end}")
    return items


def _workload(name: str, workload: dict, preset: bool) -> list[str]:
    bound = (
        f"{workload['requests']} requests"
        if workload["requests"]
        else f"requests within {workload['duration']:g} s"
    )
    items = [
        f"Lengths: {_lengths(workload)}; seed {workload['seed']}",
        f"Arrivals: {_arrivals(workload)}; {bound} a run; every system gets the same ones",
    ]
    if preset:
        items.append(f"Router: {ROUTERS[workload['router']]}")
    return [name + ". ".join(items)] if name else items


def _arrivals(workload: dict) -> str:
    arrivals = workload["arrivals"]
    rate = f", {arrivals['rate']:g} requests/s" if arrivals["rate"] else ""
    if arrivals["kind"] == "Gamma":
        cv = arrivals["cv"]
        return ("Poisson" if cv == 1 else f"gamma, coefficient of variation {cv:g}") + rate
    if arrivals["kind"] == "Replay":
        return f"times of the trace, stretched {arrivals['time_scale']:g} times"
    return "all at once"


def _length(values: dict) -> str:
    """A distribution, as the scenario's description has it."""
    if "parts" in values:
        return " + ".join(f"{100 * share:g}% {_length(part)}" for share, part in values["parts"])
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


def _lengths(workload: dict) -> str:
    if workload["trace"]:
        return f"rows of a trace of {workload['trace']['rows']}"
    parts = []
    for name in ("prompt", "output"):
        parts.append(f"{name} {_length(workload[name])}")
    shared = workload["shared_prefix"]
    if shared:
        parts.append(f"after one of {shared['groups']} prefixes of {shared['tokens']} tokens")
    return "; ".join(parts)


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


def _machine(results: Results) -> list[str]:
    machine = results.machine
    gpus = machine["gpus"] or ["no GPU"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        *gpus,
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"Python {machine['python']}, {packages}",
    ]


def _model_note(results: Results) -> list[str]:
    preset = results.scenario["model"]["preset"]
    if not preset:
        return []
    return [f"The model's folder is written by `python -m layered_sglang.make_model {preset} DIR`."]


def _commands(results: Results) -> list[str]:
    lines = [*dict.fromkeys(results.commands)]
    for name in [s["name"] for s in results.scenario["systems"]]:
        if name in results.systems:
            lines += ["", f"# {name}", results.systems[name]["command"]]
    return lines
