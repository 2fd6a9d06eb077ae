"""A torch profiler trace of a SGLang server, reduced to what each kind of iteration spends its time on.

Steps are SGLang's ``step[...]`` spans around the forward pass. A kernel belongs to the step during or
after which the host launched it (CUDA gives both one correlation number), so what follows the forward
pass, like sampling, is its step's, too.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]

#: The first that matches a kernel's name, letter case aside, has it.
FAMILIES = {
    "communication": r"nccl|all_?reduce|all_?gather|reduce_?scatter",
    "experts": r"grouped_gemm|expert_gemv|expert_plan|combine_bf16|fused_moe|moe_align|moe_sum"
    r"|count_and_sort_expert|act_and_mul|silu_and_mul",
    "router": r"topk|gating|moe_fused_gate",
    "attention": r"flash|fmha|attention|prepare_varlen|batchdecode|batchprefill|mergestate"
    r"|store_kv|set_kv|kv_buffer|create_.*_kv_indices",
    "dense GEMM": r"gemm|nvjet|cutlass|cublas|splitk|xmma",
    "norm, rope": r"norm|rope|rotary",
    "sampling": r"argmax|softmax|sampl|top_?p|multinomial|penalt",
    "copies": r"memcpy|memset|copy|\bcat|catarray|fill|elementwise|index|gather|scatter|resolve|arange",
}
OTHER = "other"
LAUNCHES = {"cuda_runtime", "cuda_driver"}
ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
#: Shorter gaps between kernels are how a GPU goes from one to the next.
GAP_US = 5.0


def family(name: str) -> str:
    lower = name.lower()
    return next((f for f, pattern in FAMILIES.items() if re.search(pattern, lower)), OTHER)


@dataclass
class Step:
    """One iteration.

    Attributes:
        start: when the host began its forward pass, microseconds.
        host_us: how long the host was in it.
        kind: decode, prefill, or merged with its layers' number.
        spans: of its kernels on the GPU, (start, end), in order of their start.
        family_us: summed kernel time.
        launches: kernels, and graphs, that the host launched.
        graphs: of these, graphs.
    """

    start: float
    host_us: float
    kind: str
    spans: list[tuple[float, float]] = field(default_factory=list)
    family_us: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    graphs: int = 0


def read_steps(events: Iterable[Event]) -> tuple[list[Step], Counter[str]]:
    """The steps of a trace without its last, which may be cut off, and kernel time by kernel name."""
    complete = [e for e in events if e.get("ph") == "X"]
    steps = [
        Step(e["ts"], e["dur"], _kind(e["name"]))
        for e in complete
        if e.get("cat") == "user_annotation" and e["name"].startswith("step[")
    ]
    steps.sort(key=lambda step: step.start)
    starts = [step.start for step in steps]

    def step_at(time: float) -> Step | None:
        i = bisect.bisect_right(starts, time) - 1
        return steps[i] if i >= 0 else None

    launched: dict[int, float] = {}
    for e in complete:
        if e.get("cat") == "user_annotation" and e["name"].startswith("layer_group["):
            step = step_at(e["ts"])
            if step is not None:
                step.kind = "merged" if step.kind == "decode" else "cohort"
        if e.get("cat") not in LAUNCHES or "correlation" not in e.get("args", {}):
            continue
        launched[e["args"]["correlation"]] = e["ts"]
        step = step_at(e["ts"])
        if step is not None and "Launch" in e["name"]:
            step.launches += 1
            step.graphs += "GraphLaunch" in e["name"]
    by_name: Counter[str] = Counter()
    for e in sorted((e for e in complete if e.get("cat") in ON_GPU), key=lambda e: e["ts"]):
        by_name[e["name"]] += e["dur"]
        time = launched.get(e.get("args", {}).get("correlation", -1))
        step = None if time is None else step_at(time)
        if step is not None:
            step.spans.append((e["ts"], e["ts"] + e["dur"]))
            step.family_us[family(e["name"])] += e["dur"]
    return steps[:-1], by_name


def _kind(span: str) -> str:
    return "decode" if "DECODE" in span else "mixed" if "MIXED" in span else "prefill"


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def gaps(spans: Iterable[tuple[float, float]]) -> list[float]:
    """Lengths of the times between intervals in which none is."""
    found, end = [], None
    for start, stop in sorted(spans):
        if end is not None and start > end:
            found.append(start - end)
        end = stop if end is None else max(end, stop)
    return found


def summarise(events: Iterable[Event]) -> dict[str, Any]:
    """Of a trace: the GPU's busy share, its gaps, and by kind of step what it and the host did.

    Raises:
        ValueError: the trace has fewer than two steps.
    """
    steps, by_name = read_steps(events)
    if not steps:
        raise ValueError("the trace has fewer than two of SGLang's step[...] spans")
    spans = [span for step in steps for span in step.spans]
    pauses = [gap for gap in gaps(spans) if gap >= GAP_US]
    window = max(s[1] for s in spans) - min(s[0] for s in spans) if spans else 0.0
    periods: dict[int, float] = {}
    for i, (step, after) in enumerate(itertools.pairwise(steps)):
        if step.spans and after.spans:
            periods[i] = after.spans[0][0] - step.spans[0][0]
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, step in enumerate(steps):
        kinds[step.kind].append(i)
    return {
        "steps": len(steps),
        "window_ms": window / 1e3,
        "gpu_busy": covered(spans) / window if window else 0.0,
        "gaps": len(pauses),
        "gaps_ms": sum(pauses) / 1e3,
        "longest_gap_ms": max(pauses, default=0.0) / 1e3,
        "kinds": {
            kind: _of_kind([steps[i] for i in which], [periods[i] for i in which if i in periods])
            for kind, which in kinds.items()
        },
        "top_kernels": [
            [name[:90], family(name), us / 1e3] for name, us in by_name.most_common(15)
        ],
        "unsorted": [n[:90] for n, _ in by_name.most_common() if family(n) == OTHER][:10],
    }


def _of_kind(steps: list[Step], periods: list[float]) -> dict[str, Any]:
    n = len(steps)
    total: Counter[str] = sum((step.family_us for step in steps), Counter())
    period = sum(periods) / len(periods) if periods else 0.0
    return {
        "n": n,
        "period_us": period,
        "gpu_us": sum(covered(step.spans) for step in steps) / n,
        "host_us": sum(step.host_us for step in steps) / n,
        "launches": sum(step.launches for step in steps) / n,
        "graphs": sum(step.graphs for step in steps) / n,
        "family_us": {name: total[name] / n for name in (*FAMILIES, OTHER)},
    }


def print_summary(name: str, summary: dict[str, Any]) -> None:
    s = summary
    print(f"{name}: {s['steps']} iterations in {s['window_ms']:.1f} ms, GPU busy {s['gpu_busy']:.1%}; "
          f"{s['gaps']} gaps of {GAP_US:g} us or more, {s['gaps_ms']:.2f} ms in all, the longest "
          f"{s['longest_gap_ms']:.2f} ms")  # fmt: skip
    families = (*FAMILIES, OTHER)
    print(f"  {'us an iteration':<15}{'n':>5}{'period':>9}{'GPU':>9}{'forward':>9}{'launches':>9}"
          f"{'graphs':>8}" + "".join(f"{f:>14}" for f in families))  # fmt: skip
    for kind, k in s["kinds"].items():
        print(f"  {kind:<15}{k['n']:>5}{k['period_us']:>9.0f}{k['gpu_us']:>9.0f}{k['host_us']:>9.0f}"
              f"{k['launches']:>9.1f}{k['graphs']:>8.1f}"
              + "".join(f"{k['family_us'][f]:>14.0f}" for f in families))  # fmt: skip
    print(
        "  most time: "
        + "; ".join(f"{n[:40]} ({f}) {ms:.2f} ms" for n, f, ms in s["top_kernels"][:8])
    )
    if s["unsorted"]:
        print("  counted as other: " + "; ".join(n[:40] for n in s["unsorted"]))


def trimmed(trace: dict[str, Any]) -> dict[str, Any]:
    """The trace without operators, stacks and flows of the host, which fill most of it."""
    kept = LAUNCHES | ON_GPU | {"user_annotation", "gpu_user_annotation"}
    events = [e for e in trace["traceEvents"] if e.get("ph") == "M" or e.get("cat") in kept]
    return {**trace, "traceEvents": events}
