"""From rows to figures: SGLang's own metrics by their names, goodput and energy, over repeats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.spec.target import Target

Rows = Sequence[Mapping[str, Any]]
#: name in the metrics' keys -> percentile.
PERCENTILES = {"median": 50, "p90": 90, "p95": 95, "p99": 99}


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile by linear interpolation between ranks, as NumPy's and SGLang's benchmark's."""
    ranked = sorted(values)
    position = (len(ranked) - 1) * percent / 100
    low, high = ranked[math.floor(position)], ranked[math.ceil(position)]
    return low + (high - low) * (position - math.floor(position))


def keeps(row: Mapping[str, Any], target: Target) -> bool:
    """Whether a request counts: answered whole, TTFT and every ITL within the target."""
    if row["error"] or row["ttft_s"] is None or row["ttft_s"] > target.ttft_s:
        return False
    return max(row["itls_s"], default=0.0) * 1000 <= target.itl_ms


def attainment(rows: Rows, target: Target) -> float:
    """The share of requests that keep the target; a request without an answer does not."""
    return sum(keeps(row, target) for row in rows) / len(rows) if rows else 0.0


def metrics(
    rows: Rows,
    duration: float,
    targets: Iterable[Target] = (),
    energy: float | None = None,
    short_prompt_tokens: int | None = None,
) -> dict[str, float]:
    """The figures of one run.

    Args:
        rows: of all its requests.
        duration: seconds from its start to its last answer.
        energy: joules of all GPUs in that time.
        short_prompt_tokens: TTFT of prompts with fewer tokens is a figure of its own.

    Returns:
        SGLang's names where SGLang has the figure (times in ms, throughput per second);
        ``attainment: …`` is a share, ``goodput: …`` requests per second that keep the target,
        ``max_sent_late_ms`` the client's own delay.
        Figures of which there is nothing (no answer at all, no energy) are absent.
    """
    answered = [row for row in rows if not row["error"]]
    tokens_in = sum(row["prompt_tokens"] for row in answered)
    tokens_out = sum(row["output_tokens"] for row in answered)
    values: dict[str, float] = {
        "requests": len(rows),
        "completed": len(answered),
        "duration": duration,
        "total_input": tokens_in,
        "total_output": tokens_out,
        "request_throughput": len(answered) / duration,
        "input_throughput": tokens_in / duration,
        "output_throughput": tokens_out / duration,
        "total_throughput": (tokens_in + tokens_out) / duration,
        "concurrency": sum(row["e2e_s"] for row in answered) / duration,
    }
    late = [row["sent_s"] - row["arrival"] for row in rows if row.get("sent_s")]
    if late:
        values["max_sent_late_ms"] = 1000 * max(late)
    samples = {
        "ttft_ms": [row["ttft_s"] for row in answered],
        "tpot_ms": [
            (row["e2e_s"] - row["ttft_s"]) / (row["output_tokens"] - 1)
            for row in answered
            if row["output_tokens"] > 1
        ],
        "itl_ms": [gap for row in answered for gap in row["itls_s"]],
        "e2e_latency_ms": [row["e2e_s"] for row in answered],
    }
    if short_prompt_tokens is not None:
        samples["ttft_ms: short prompts"] = [
            row["ttft_s"] for row in answered if row["prompt_tokens"] < short_prompt_tokens
        ]
    for name, seconds in samples.items():
        if not seconds:
            continue
        values[f"mean_{name}"] = 1000 * fmean(seconds)
        for prefix, percent in PERCENTILES.items():
            values[f"{prefix}_{name}"] = 1000 * percentile(seconds, percent)
        values[f"max_{name}"] = 1000 * max(seconds)
    for target in targets:
        share = attainment(rows, target)
        values[f"attainment: {target.name}"] = share
        values[f"goodput: {target.name}"] = share * len(rows) / duration
    if energy is not None and tokens_out:
        values["energy_j"] = energy
        values["mj_per_token"] = 1000 * energy / (tokens_in + tokens_out)
        values["mj_per_output_token"] = 1000 * energy / tokens_out
    return values


def summarise(
    rows: Rows,
    runs: Sequence[Mapping[str, Any]],
    targets: Sequence[Target],
    short_prompt_tokens: int | None = None,
) -> list[dict[str, Any]]:
    """The figures of each cell.

    Args:
        rows: of all runs; those of runs that ``runs`` does not have are left out.
        runs: the complete ones; those of searches are left out, for they end early.

    Returns:
        One record for a cell, in the order of their first run: ``system``, ``workload``, ``rate``,
        ``repeats``, and ``metrics``: name -> ``median``, ``low`` and ``high`` over repeats.
    """
    of_run: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_run.setdefault(row["run"], []).append(row)
    groups: dict[tuple[str, Point], list[dict[str, float]]] = {}
    for run in runs:
        if run.get("search") is not None:
            continue
        values = metrics(
            of_run.get(run["run"], []),
            run["duration_s"],
            targets,
            run.get("energy_j"),
            short_prompt_tokens,
        )
        for name, sampled in run.get("sampled", {}).items():
            values[f"mean_{name}"], values[f"max_{name}"] = sampled["mean"], sampled["max"]
        values |= _experts(run.get("experts"), values["completed"])
        groups.setdefault((run["system"], Point.of(run)), []).append(values)
    return [
        {
            "system": system,
            "workload": point.workload,
            "rate": point.rate,
            "repeats": len(repeats),
            "metrics": {name: _spread(repeats, name) for name in repeats[0]},
        }
        for (system, point), repeats in groups.items()
    ]


def _experts(experts: Mapping[str, Any] | None, completed: float) -> dict[str, float]:
    """Expert weights loaded by one GPU, GB: in iterations that only decode, in those with prompts."""
    if not experts:
        return {}
    gb = {kind: n * experts["bytes_per_expert"] / 1e9 for kind, n in experts["loads"].items()}
    values = {f"expert_gb_{kind}": value for kind, value in gb.items()}
    values["expert_gb"] = sum(gb.values())
    if completed:
        values["expert_gb_per_request"] = values["expert_gb"] / completed
    return values


def _spread(repeats: Sequence[Mapping[str, float]], name: str) -> dict[str, float]:
    values = [repeat[name] for repeat in repeats if name in repeat]
    return {"median": median(values), "low": min(values), "high": max(values)}
