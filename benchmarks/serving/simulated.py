#!/usr/bin/env python3
"""How near the simulator comes to a benchmark: every cell of ``bench run``'s folder, simulated.

    python benchmarks/serving/simulated.py DIR --cost-profile FILE

The simulator gets the measured requests (lengths and arrival times), the server's KV slots and its
batch sizes, and the policy. Its iterations are as noisy as those that the profile was fitted to. A
layered server's planner begins with the figures that the server began with, and learns from cell to
cell of a start in the order in which they ran. Cells that the simulator cannot schedule are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from layered_sglang.bench.report.data import Results, read_results
from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.spec.system import sglang_s_schedule
from layered_sglang.bench.store import StoreError
from layered_sglang.bench.table import as_markdown, points
from layered_sglang.calibrate import cost_model
from layered_sglang.model_zoo import find_preset
from layered_sglang.scheduling import CostModel, Estimator, ModelShape
from layered_sglang.scheduling.correction import FIRST, OnlineCorrection
from layered_sglang.scheduling.estimator import FITTED_LIMIT, NOMINAL_LIMIT
from layered_sglang.scheduling.profile import CostProfile, ProfileError
from layered_sglang.simulator.results import Outcome
from layered_sglang.simulator.run import Setup, simulate
from layered_sglang.simulator.systems import System
from layered_sglang.simulator.traffic import Traffic

#: Where a server does not tell: SGLang's decode graphs bound what the simulator needs to know.
MAX_RUNNING = 64
#: Prompts of up to this many tokens replay prefill graphs, unless they are switched off.
PREFILL_GRAPH_ROWS = 512
#: Seconds from a client's sending to the scheduler's queue, and from a result to the client: HTTP, the
#: tokenizer's and the detokenizer's processes. The least that any request of eight cells took from its
#: sending to the launch of its first layers was 4.2 to 4.8 ms, the median from a result to the client
#: 1 ms (one H200 machine's host, 2026-11-26-h200-evaluation.md's run).
FRONT_END = 4e-3 + 1e-3
#: Logarithmic standard deviation of iterations over their median error: that of a normal distribution.
NORMAL = 1 / 0.6745
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


def setup_of(
    results: Results,
    described: Mapping[str, Any],
    profile: CostProfile,
    estimator: Estimator | None,
) -> Setup:
    """The server of a system, as the simulator has it; its planner predicts by ``estimator``."""
    config = dict(find_preset(results.scenario["model"]["preset"]).config)
    graphs = "--disable-prefill-cuda-graph" not in described["flags"]
    model = CostModel(
        ModelShape.from_config(config, tp_size=profile.tp_size, spread=profile.spread),
        profile.coefficients,
        graph_rows=4096,
        prefill_graph_rows=PREFILL_GRAPH_ROWS if graphs else 0,
    )
    info = _server_info(results, described)
    return Setup(
        model,
        int(info.get("max_total_num_tokens") or 600_000),
        int(info.get("cuda_graph_max_bs_decode") or MAX_RUNNING),
        noise=NORMAL * profile.quality.get("held_out", {}).get("median_error", 0.0),
        estimator=estimator,
    )


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


def simulated(results: Results, profile: CostProfile) -> dict[tuple[str, Point], Outcome]:
    """Every cell's outcome, by system and point; cells of a server in the order in which they ran."""
    described = {system["name"]: system for system in results.scenario["systems"]}
    estimators: dict[str, Estimator | None] = {}
    outcomes: dict[tuple[str, Point], Outcome] = {}
    for run in sorted(results.runs, key=lambda run: run["run"]):
        name, point = run["system"], Point.of(run)
        system = system_of(described[name])
        if system is None or (name, point) in outcomes:
            continue
        server = described[name]["server"]
        if server not in estimators:
            estimators[server] = estimator_of(results, described[name])
        setup = setup_of(results, described[name], profile, estimators[server])
        outcome = simulate(system, setup, traffic_of(results, name, point), processes=1)
        outcome.ttft += FRONT_END
        outcome.e2e += FRONT_END
        outcomes[name, point] = outcome
    return outcomes


def compared(results: Results, profile: CostProfile) -> list[list[str]]:
    """Cells: a row for each cell of the benchmark, simulated for measured and the difference."""
    targets = results.targets[:1]
    heads = ["TTFT mean, ms", "ITL P99, ms", "E2E mean, s"]
    cells = [["", *heads, *(f"within {target.name}, %" for target in targets)]]
    outcomes = simulated(results, profile)
    settled = {
        (run["system"], Point.of(run)): run["warm_up"].get("stable", True) for run in results.runs
    }
    for point in points(results.summary):
        for name in results.at(point):
            outcome = outcomes.get((name, point))
            if outcome is None:
                continue
            limits = (targets[0].ttft_s, targets[0].itl_ms / 1000) if targets else (10.0, 0.1)
            told, seen = outcome.summary(*limits), results.metrics(name, point)
            pairs = [
                (told["ttft_ms"]["mean"], seen.get("mean_ttft_ms"), 0),
                (told["itl_ms"]["p99"], seen.get("p99_itl_ms"), 1),
                (told["e2e_ms"]["mean"] / 1e3, seen.get("mean_e2e_latency_ms", 0.0) / 1e3, 2),
                *(
                    (100 * told["attainment"], 100 * seen[f"attainment: {target.name}"], 0)
                    for target in targets
                ),
            ]
            title = f"{point.short} {name}".strip() + ("" if settled[name, point] else UNSETTLED)
            cells.append([title, *(_pair(*pair) for pair in pairs)])
    return cells


def _pair(told: float, seen: float | None, digits: int) -> str:
    if not seen:
        return f"{told:.{digits}f} for –"
    return f"{told:.{digits}f} for {seen:.{digits}f} ({told / seen - 1:+.0%})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="results of bench run")
    parser.add_argument("--cost-profile", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(argv)
    try:
        results = read_results(args.folder)
        if not results.scenario["model"]["preset"]:
            raise StoreError(
                f"{args.folder} is of a model without a preset; its shape is not known"
            )
        cells = compared(results, CostProfile.read(args.cost_profile))
    except (StoreError, ProfileError) as error:
        print(f"simulated: {error}", file=sys.stderr)
        return 2
    print("\n".join(as_markdown(cells)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
