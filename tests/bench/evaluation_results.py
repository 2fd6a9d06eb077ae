"""Results of an evaluation, made by hand."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from layered_sglang.bench.report.data import Results, read_results
from layered_sglang.bench.spec.scenario import load_scenario
from layered_sglang.bench.store import Store

SCENARIO = """\
name: evaluation
model: {preset: qwen3-30b-a3b}
systems:
  stock: {flags: --chunked-prefill-size 512}
  slo-40: {server: layered, flags: --itl-slo-ms 40}
  slo-20: {on: slo-40, planning: {itl_slo_ms: 20}}
  fixed: {on: slo-40, planning: {layer_group_policy: fixed}}
workloads:
  arxiv: &lengths {prompt_tokens: 9, output_tokens: 3, arrivals: {poisson: {rate: 1}}, requests: 10}
  arxiv-shaped: *lengths
  chat:
    prompt_tokens: {mixture: [[0.9, {uniform: [1, 9]}], [0.1, 99]]}
    output_tokens: 3
    arrivals: {poisson: {rate: 1}}
    requests: 10
cells:
  - {workload: arxiv, rates: [1, 2]}
  - {workload: arxiv-shaped, systems: [stock, fixed]}
  - {workload: chat, systems: [fixed]}
targets: [{ttft_s: 2, itl_ms: 50}, {ttft_s: 10, itl_ms: 125}]
"""
#: system -> TTFT (s) and ITL (ms) at a rate of 1; both grow with the rate.
TIMES = {"stock": (2.0, 40), "slo-40": (0.5, 38), "slo-20": (0.8, 19), "fixed": (1.0, 20)}


def write_results(
    tmp_path: Path,
    repeats: Sequence[float] = (1.0,),
    missing: Collection[tuple[str, int]] = (),
    systems: str = "",
    experts: Mapping[str, int] | None = None,
) -> Results:
    """A benchmark's folder below ``tmp_path``, read back.

    Args:
        repeats: a factor of every time and energy of each.
        missing: systems and repeats that were not run.
        systems: more lines below ``systems``.
        experts: each run's loads by kind, of experts of a gigabyte.
    """
    tmp_path.mkdir(exist_ok=True)
    path, out = tmp_path / "s.yaml", tmp_path / "out"
    path.write_text(SCENARIO.replace("workloads:", systems + "workloads:"))
    scenario, store = load_scenario(path), Store(out)
    store.open(scenario, path, "bench run")
    runs = [(r, factor, c) for r, factor in enumerate(repeats) for c in scenario.cells]
    for number, (repeat, factor, cell) in enumerate(runs):
        if (cell.system, repeat) in missing:
            continue
        ttft, itl = (factor * t for t in TIMES.get(cell.system, (1.0, 30)))
        rate = cell.rate or 1.0
        where = {"system": cell.system, "workload": cell.workload, "repeat": repeat}
        where["rate"] = cell.rate
        run = {
            **{"run": number, **where, "search": None, "duration_s": 10.0, "energy_j": 100 * ttft},
            **{"began": "2026-01-02T03:04:05+00:00", "monotonic": [0.0, 1.0], "trace": None},
            "warm_up": {},
        }
        if experts:
            run["experts"] = {"bytes_per_expert": 10**9, "loads": experts, "iterations": {}}
        store.append("runs.jsonl", json.dumps(run))
        for index in range(10):
            row = {
                **{"run": number, **where, "index": index, "prompt_tokens": 9, "output_tokens": 3},
                **{"rid": f"{number}-{index}", "arrival": float(index), "sent_s": float(index)},
                **{"ttft_s": ttft * rate, "itls_s": [itl * rate / 1000] * 2, "e2e_s": 3.0},
                "error": "",
            }
            store.append("rows.jsonl", json.dumps(row))
    machine = {"gpus": [], "cpu": "C", "cores": 2, "memory_gib": 3, "python": "3", "packages": {}}
    store.write("systems.json", {"machine": machine, "systems": {}})
    return read_results(out)
