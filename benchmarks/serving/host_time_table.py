"""host_time.py's reduction: turns of the scheduler's loop to milliseconds by part."""

from __future__ import annotations

import statistics
from typing import Any

from host_clock import PARTS

Turn = dict[str, Any]
#: In the order of the table.
KINDS = (
    "decode",
    "decode, admitting",
    "merged, graphs",
    "merged, graphs, admitting",
    "merged, eager",
    "merged, eager, admitting",
    "prefill",
)
#: Host time that layered prefill may add to stock's decode iteration, and to its ITL.
MOST_ADDED_MS, MOST_ITL = 0.3, 1.01


def kind_of(turn: Turn) -> str:
    kind = turn["kind"]
    if kind == "merged":
        kind += ", eager" if turn.get("eager") else ", graphs"
    if kind != "prefill" and turn.get("admits"):
        kind += ", admitting"
    return kind


def host_ms(turn: Turn) -> float:
    """Time in which the host worked, milliseconds."""
    return sum(ns for part, ns in turn["ns"].items() if part != "gpu") / 1e6


def by_kind(turns: list[Turn], batch: int) -> dict[str, dict[str, Any]]:
    """Mean of each part, mean and P99 of the host's time, by kind of turn.

    Args:
        turns: as ``host_clock`` wrote them.
        batch: turns with another number of decode rows are left out (prefills have none).
    """
    kinds: dict[str, list[Turn]] = {}
    for turn in turns:
        if turn["kind"] == "prefill" or turn["batch"] == batch:
            kinds.setdefault(kind_of(turn), []).append(turn)
    return {kind: _summary(kinds[kind]) for kind in KINDS if kind in kinds}


def _summary(turns: list[Turn]) -> dict[str, Any]:
    n = len(turns)
    host = sorted(map(host_ms, turns))
    return {
        "n": n,
        "host_ms": statistics.fmean(host),
        "host_p99_ms": host[min(n - 1, int(0.99 * n))],
        "host_p50_ms": statistics.median(host),
        "parts_ms": {p: sum(t["ns"].get(p, 0) for t in turns) / n / 1e6 for p in PARTS},
        "changes": statistics.fmean(t["changes"] for t in turns),
        "layers": statistics.fmean(t.get("layers", 0) for t in turns),
    }


def added_ms(host: dict[str, Any]) -> dict[str, float]:
    """By batch: what layered's decode iteration takes more than stock's, medians, milliseconds."""
    if not {"stock", "layered"} <= host.keys():
        return {}
    stock, layered = host["stock"]["batches"], host["layered"]["batches"]
    return {
        batch: layered[batch]["decode"]["host_p50_ms"] - stock[batch]["decode"]["host_p50_ms"]
        for batch in stock
        if "decode" in stock[batch] and "decode" in layered.get(batch, {})
    }


def print_report(report: dict[str, Any]) -> None:
    print("ITL with no prompt waiting, ms: median (least ... most), servers in turn")
    for batch, runs in report["itl_ms"].items():
        if not all(runs.values()):
            continue
        text = "  ".join(
            f"{name} {statistics.median(ms):.3f} ({min(ms):.3f} ... {max(ms):.3f})"
            for name, ms in sorted(runs.items(), reverse=True)
        )
        ratio = statistics.median(runs["layered"]) / statistics.median(runs["stock"])
        verdict = "within 1%" if ratio <= MOST_ITL else "more than 1% longer"
        print(f"  batch {batch:>4}: {text}  ratio {ratio:.4f}: {verdict}")
    print("\nHost time of a turn of the scheduler's loop, ms (mean by part; gpu is waiting)")
    print(f"{'':>8}{'batch':>6}  {'kind':<26}{'n':>6}{'host':>8}{'P50':>7}{'P99':>7}{'clock':>7}"
          + "".join(f"{part:>9}" for part in PARTS))  # fmt: skip
    for name, result in report["host"].items():
        for batch, kinds in result["batches"].items():
            for kind, s in kinds.items():
                clock = s["changes"] * result["cost_of_a_change_ns"] / 1e6
                print(f"{name:>8}{batch:>6}  {kind:<26}{s['n']:>6}{s['host_ms']:>8.3f}"
                      f"{s['host_p50_ms']:>7.3f}{s['host_p99_ms']:>7.3f}{clock:>7.3f}"
                      + "".join(f"{ms:>9.3f}" for ms in s["parts_ms"].values()))  # fmt: skip
    print("clock: what measuring itself adds to the host time, estimated")
    for batch, ms in added_ms(report["host"]).items():
        verdict = "at most" if ms <= MOST_ADDED_MS else "MORE than"
        print(f"batch {batch}: layered's decode iteration adds {ms:+.3f} ms of host time to stock's "
              f"(medians), {verdict} {MOST_ADDED_MS} ms")  # fmt: skip
    print(f"start {report.get('start_seconds')} s, all {report['seconds']} s")
