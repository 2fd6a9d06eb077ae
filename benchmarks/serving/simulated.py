#!/usr/bin/env python3
"""How near the simulator comes to a benchmark: every cell of ``bench run``'s folder, simulated.

    python benchmarks/serving/simulated.py DIR ... --cost-profile FILE [--host DIR] [--undisturbed]

The simulator gets the measured requests (lengths and arrival times), the server's KV slots, its batch
sizes, the policy, and the mean clock of the GPU. How fast the machine's host launches is learnt from the
first layered cell and the warm-up before it, in this folder or in ``--host``, another one of the same
machine. Iterations are as noisy as those that the profile was fitted to, launches as those of the host. A
layered server's planner begins with the figures that the server began with, and learns from cell to
cell of a start in the order in which they ran. Cells that the simulator cannot schedule are left out.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from delivery import undisturbed
from layered_sglang.bench.report.data import Results, read_results
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.spec.system import sglang_s_schedule
from layered_sglang.bench.store import StoreError
from layered_sglang.bench.table import as_markdown, points
from layered_sglang.calibrate import cost_model
from layered_sglang.calibration.errors import CalibrationError
from layered_sglang.calibration.host import HostFit, fit_host
from layered_sglang.calibration.rows import read_rows
from layered_sglang.model_zoo import find_preset
from layered_sglang.scheduling import CostModel, Estimator, ModelShape
from layered_sglang.scheduling.correction import FIRST, OnlineCorrection
from layered_sglang.scheduling.estimator import FITTED_LIMIT, NOMINAL_LIMIT
from layered_sglang.scheduling.profile import CostProfile, ProfileError
from layered_sglang.simulator.results import Outcome
from layered_sglang.simulator.run import Setup, simulate
from layered_sglang.simulator.systems import System
from layered_sglang.simulator.traffic import Traffic

#: SGLang lets at least so many requests run, slots permitting; and the largest batch that a graph is
#: captured for, where a server does not tell.
MAX_RUNNING, LARGEST_GRAPH = 2048, 64
#: Prompts of up to this many tokens replay prefill graphs, where a server does not tell.
PREFILL_GRAPH_ROWS = 512
#: Seconds from a client's sending to the scheduler's queue, and from a result to the client: HTTP, the
#: tokenizer's and the detokenizer's processes. The least that any request of eight cells took from its
#: sending to the launch of its first layers was 4.2 to 4.8 ms, the median from a result to the client
#: 1 ms (one H200 machine's host, 2026-11-26-h200-evaluation.md's run).
FRONT_END = 4e-3 + 1e-3
#: Logarithmic standard deviation of iterations over their median error: that of a normal distribution.
NORMAL = 1 / 0.6745
#: TTFT and ITL, seconds, that requests are counted by where a scenario has no target.
FIRST_LIMITS = (10.0, 0.1)
#: Draws of the noise.
NOISES = 5
#: Of a cell whose server had not settled before it: kernels that came for the first time stopped it for
#: longer than any iteration takes, which is nothing that a schedule could be simulated with.
UNSETTLED = " (warm-up had not settled)"
#: value of a layered server -> kind of the simulator's system.
LAYERED = {"itl_slo_ms": "slo", "num_layer_groups": "groups", "layer_group_tokens": "fixed"}


def system_of(described: Mapping[str, Any]) -> System | None:
    """The simulator's system for a scenario's one; None where it has none."""
    planning, flags = described["planning"], list(described["flags"])

    def flag(name: str) -> str | None:
        text = "--" + name.replace("_", "-")
        return flags[flags.index(text) + 1] if text in flags[:-1] else None

    if described["kind"] == "stock":
        size, mixed = sglang_s_schedule(described)
        return System("mixed" if mixed else "chunked", float(size or 8192))
    if described["kind"] != "layered":
        return None
    values = planning or {name: flag(name) for name in (*LAYERED, "layer_group_policy")}
    for name, kind in LAYERED.items():
        if values.get(name) is not None:
            return System(kind, float(values[name]))
    return System("fixed", 512) if values.get("layer_group_policy") == "fixed" else None


def model_of(results: Results, profile: CostProfile) -> CostModel:
    """The benchmark's model on the profile's GPU, with the layered server's graphs."""
    config = dict(find_preset(results.scenario["model"]["preset"]).config)
    shape = ModelShape.from_config(config, tp_size=profile.tp_size, spread=profile.spread)
    return CostModel(shape, profile.coefficients, graph_rows=4096)


def host_of(model: CostModel, results: Results) -> HostFit | None:
    """How fast the host launches that ``results`` come from, as the first layered cell and the warm-up
    before it tell; None without one.

    What one system's server tells holds for all: their hosts launch the same layers.
    """
    traced = sorted((run for run in results.runs if run.get("trace")), key=lambda r: r["run"])
    for run in traced[:1]:
        server = {"server": run["trace"].rsplit("-", 1)[0]}
        told = _server_info(results, server).get("layered_sglang", {}).get("cost_model", {})
        lines = (Path(run["folder"]) / "traces" / run["trace"]).read_text().splitlines()
        until = run["monotonic"][1]
        rows = read_rows(
            (line for line in lines if json.loads(line)["time"] <= until),
            model.shape.num_layers,
            overlap=True,
        )
        sizes = tuple(told.get("decode_sizes", ()))
        return fit_host(dataclasses.replace(model, decode_sizes=sizes), rows)
    return None


def clock_of(run: Mapping[str, Any], profile: CostProfile) -> float:
    """A run's mean SM clock over that of the iterations which the profile was fitted to; 1 where either
    is not known. A GPU at its power limit lowers it, by up to a tenth here."""
    measured = run.get("sampled", {}).get("sm_mhz", {}).get("mean")
    fitted = profile.made.get("sm_mhz")
    return measured / fitted if measured and fitted else 1.0


def setup_of(
    results: Results,
    described: Mapping[str, Any],
    profile: CostProfile,
    host: HostFit | None = None,
    clock: float = 1.0,
    estimator: Estimator | None = None,
) -> Setup:
    """The server of a system, as the simulator has it.

    Args:
        host: launches its iterations; the profile's, by default.
        clock: as in :func:`clock_of`.
        estimator: its planner predicts by it; by the world's own figures, by default.
    """
    model = model_of(results, profile)
    info = _server_info(results, described)
    model = dataclasses.replace(
        model,
        coefficients=(host.coefficients if host else model.coefficients).at_clock(clock),
        prefill_graph_rows=prefill_graph_rows(info, described["flags"]),
    )
    return Setup(
        model,
        int(info.get("max_total_num_tokens") or 600_000),
        MAX_RUNNING,
        noise=NORMAL * profile.quality.get("held_out", {}).get("median_error", 0.0),
        host_noise=host.spread if host else 0.0,
        estimator=estimator,
        largest_graph=int(info.get("cuda_graph_max_bs_decode") or LARGEST_GRAPH),
    )


def prefill_graph_rows(info: Mapping[str, Any], flags: Sequence[str]) -> int:
    """The largest prefill graph that a server captured: SGLang captures them up to the chunk size that it
    is started with. 0: none."""
    if "--disable-prefill-cuda-graph" in flags:
        return 0
    graphs = info.get("cuda_graph_config", {}).get("prefill")
    if graphs is None:
        return PREFILL_GRAPH_ROWS
    return 0 if graphs["backend"] == "disabled" else max(graphs["bs"] or [0])


def estimator_of(results: Results, described: Mapping[str, Any]) -> Estimator | None:
    """What a layered server's planner predicted by when it started, if that was stored."""
    info = _server_info(results, described).get("layered_sglang", {})
    if "cost_model" not in info:
        return None
    nominal = info["costs"].startswith("data sheet")
    correction = (
        OnlineCorrection(NOMINAL_LIMIT, first=FIRST) if nominal else OnlineCorrection(FITTED_LIMIT)
    )
    return Estimator(cost_model(info["cost_model"]), correction)


def _server_info(results: Results, described: Mapping[str, Any]) -> Mapping[str, Any]:
    info: Mapping[str, Any] = results.systems.get(described["server"], {}).get("server_info", {})
    return info


def traffic_of(results: Results, name: str, point: Point) -> Traffic:
    """The requests of a cell's first repeat."""
    rows = results.rows_of(name, point)
    first = min(row["repeat"] for row in rows)
    rows = sorted((r for r in rows if r["repeat"] == first), key=lambda row: row["arrival"])
    return Traffic(
        np.array([row["arrival"] for row in rows]),
        np.array([row["prompt_tokens"] for row in rows], dtype=np.int64),
        np.array([max(1, row["output_tokens"]) for row in rows], dtype=np.int64),
        np.full(len(rows), -1, dtype=np.int64),
    )


def simulated(
    results: Results, profile: CostProfile, host: Results | None = None
) -> dict[tuple[str, Point], list[Outcome]]:
    """Every cell's outcomes, by system and point; cells of a server in the order in which they ran.
    ``host``: results that tell how fast the host launches."""
    fit = None if host is None else host_of(model_of(results, profile), host)
    described = {system["name"]: system for system in results.scenario["systems"]}
    estimators: dict[str, Estimator | None] = {}
    outcomes: dict[tuple[str, Point], list[Outcome]] = {}
    for run in sorted(results.runs, key=lambda run: run["run"]):
        name, point = run["system"], Point.of(run)
        system = system_of(described[name])
        if system is None or (name, point) in outcomes:
            continue
        server = described[name]["server"]
        if server not in estimators:
            estimators[server] = estimator_of(results, described[name])
        clock = clock_of(run, profile)
        setup = setup_of(results, described[name], profile, fit, clock, estimators[server])
        outcomes[name, point] = repeated(system, setup, traffic_of(results, name, point))
    return outcomes


def repeated(system: System, setup: Setup, traffic: Traffic) -> list[Outcome]:
    """The same requests with :data:`NOISES` draws of the noise: a P99 is made of a few gaps. What the
    planner learns from the last one stays with it."""
    outcomes = []
    for seed in range(NOISES):
        own = setup.estimator if seed == NOISES - 1 else copy.deepcopy(setup.estimator)
        drawn = dataclasses.replace(setup, seed=seed, estimator=own)
        outcome = simulate(system, drawn, traffic, processes=1)
        outcome.ttft += FRONT_END
        outcome.e2e += FRONT_END
        outcomes.append(outcome)
    return outcomes


def figures(outcomes: Sequence[Outcome], limits: Sequence[Sequence[float]]) -> list[float]:
    """Means over the draws: TTFT mean (ms), ITL P99 (ms), E2E mean (s), requests within each of
    ``limits`` (TTFT and every gap, seconds; %)."""
    rows = []
    for outcome in outcomes:
        told = [outcome.summary(ttft, gap) for ttft, gap in limits or [FIRST_LIMITS]]
        one = told[0]
        means = (one["ttft_ms"]["mean"], one["itl_ms"]["p99"], one["e2e_ms"]["mean"] / 1e3)
        rows.append((*means, *(100 * each["attainment"] for each in told[: len(limits)])))
    over_draws: list[float] = np.mean(rows, axis=0).tolist()
    return over_draws


def measured(results: Results, name: str, point: Point) -> list[float]:
    """The same of what was measured, the median over repeats; within each of the scenario's targets."""
    seen = results.metrics(name, point)
    within = [100 * seen[f"attainment: {target.name}"] for target in results.targets]
    e2e = seen.get("mean_e2e_latency_ms", 0.0) / 1e3
    return [seen.get("mean_ttft_ms", 0.0), seen.get("p99_itl_ms", 0.0), e2e, *within]


def limits_of(results: Results) -> list[list[float]]:
    """TTFT and ITL, seconds, of each of the scenario's targets."""
    return [[target.ttft_s, target.itl_ms / 1000] for target in results.targets]


def compared(
    results: Results, profile: CostProfile, host: Results | None = None
) -> list[list[str]]:
    """Cells: a row for each cell of the benchmark, simulated for measured and the difference."""
    heads = ["TTFT mean, ms", "ITL P99, ms", "E2E mean, s"]
    cells = [["", *heads, *(f"within {t.name}, %" for t in results.targets)]]
    outcomes = simulated(results, profile, host)
    settled = {
        (run["system"], Point.of(run)): run["warm_up"].get("stable", True) for run in results.runs
    }
    for point in points(results.summary):
        for name in results.at(point):
            if (name, point) not in outcomes:
                continue
            seen = measured(results, name, point)
            told = figures(outcomes[name, point], limits_of(results))
            title = f"{point.short} {name}".strip() + ("" if settled[name, point] else UNSETTLED)
            digits = (0, 1, 2, *(0 for _ in results.targets))
            pairs = zip(told, seen, digits, strict=True)
            cells.append([title, *(_pair(*pair) for pair in pairs)])
    return cells


def recorded(results: Results, profile: CostProfile, host: Results | None = None) -> dict[str, Any]:
    """All that a simulation of the cells needs, and what was measured: small, for a test to keep."""
    fit = None if host is None else host_of(model_of(results, profile), host)
    described = {system["name"]: system for system in results.scenario["systems"]}
    traffic: dict[str, list[list[float]]] = {}
    cells = []
    for run in sorted(results.runs, key=lambda run: run["run"]):
        name, point = run["system"], Point.of(run)
        system = system_of(described[name])
        if system is None:
            continue
        sent = traffic_of(results, name, point)
        columns = (np.round(sent.arrival, 3), sent.prompt, sent.output)
        traffic[point.short] = [column.tolist() for column in columns]
        clock = clock_of(run, profile)
        setup = setup_of(results, described[name], profile, fit, clock)
        cells.append(
            {
                **{"traffic": point.short, "system": system.name, "clock": round(clock, 4)},
                **{"server": described[name]["server"], "kv_tokens": setup.kv_tokens},
                "largest_graph": setup.largest_graph,
                "prefill_graph_rows": setup.model.prefill_graph_rows,
                "measured": [round(value, 4) for value in measured(results, name, point)],
            }
        )
    return {
        "limits": limits_of(results),
        "host": None if fit is None else dataclasses.asdict(fit.coefficients),
        "host_spread": None if fit is None else fit.spread,
        "cells": cells,
        "traffic": traffic,
    }


def _pair(told: float, seen: float | None, digits: int) -> str:
    if not seen:
        return f"{told:.{digits}f} for –"
    return f"{told:.{digits}f} for {seen:.{digits}f} ({told / seen - 1:+.0%})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "folders",
        type=Path,
        metavar="DIR",
        nargs="+",
        help="results of bench run, of one scenario on one machine",
    )
    parser.add_argument("--cost-profile", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--host",
        type=Path,
        metavar="DIR",
        help="results of layered servers on the same machine, where DIR has none",
    )
    parser.add_argument(
        "--undisturbed",
        action="store_true",
        help="compare with gaps as the scheduler had them (delivery.py), not as clients did",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write what the simulation needs, as JSON"
    )
    args = parser.parse_args(argv)
    try:
        results = read_results(*args.folders)
        host = results if args.host is None else read_results(args.host)
        if not results.scenario["model"]["preset"]:
            raise StoreError(
                f"{results.folder} is of a model without a preset; its shape is not known"
            )
        profile = CostProfile.read(args.cost_profile)
        if args.undisturbed:
            results = undisturbed(results)
        if args.record is not None:
            record = json.dumps(recorded(results, profile, host), separators=(",", ":"))
            args.record.write_text(record.replace("},{", "},\n{") + "\n")
        cells = compared(results, profile, host)
    except (StoreError, ProfileError, CalibrationError) as error:
        print(f"simulated: {error}", file=sys.stderr)
        return 2
    print("\n".join(as_markdown(cells)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
