"""What was measured on what, in words: the scenario, its workloads, warm-ups, machine, commands."""

from __future__ import annotations

from layered_sglang.bench.report.data import Results
from layered_sglang.model_zoo import PRESETS

#: What the routers of a preset's weights do.
ROUTERS = {
    "uniform": "as the weights have it, nearly uniform (a trained one reaches fewer experts)",
    "shaped": "shaped, so that 16, 32, 64 and 128 tokens reach about as many experts as with a "
    "trained one",
}


def described(results: Results) -> list[str]:
    """The scenario, an item a line."""
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


def machine(results: Results) -> list[str]:
    """Hardware and versions."""
    told = results.machine
    gpus = told["gpus"] or ["no GPU"]
    packages = ", ".join(f"{name} {version}" for name, version in told["packages"].items())
    return [
        *gpus,
        f"{told['cpu']}, {told['cores']} cores, {told['memory_gib']} GiB",
        f"Python {told['python']}, {packages}",
    ]


def model_note(results: Results) -> list[str]:
    """Where a preset's folder comes from."""
    preset = results.scenario["model"]["preset"]
    if not preset:
        return []
    return [f"The model's folder is written by `python -m layered_sglang.make_model {preset} DIR`."]


def commands(results: Results) -> list[str]:
    """How the benchmark was called, and how it started its servers."""
    lines = [*dict.fromkeys(results.commands)]
    for name in [s["name"] for s in results.scenario["systems"]]:
        if name in results.systems:
            lines += ["", f"# {name}", results.systems[name]["command"]]
    return lines
