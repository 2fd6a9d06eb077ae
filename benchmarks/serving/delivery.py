#!/usr/bin/env python3
"""What happens to tokens between the scheduler and their clients, in a folder of ``bench run``.

    python benchmarks/serving/delivery.py DIR [DIR ...]

A token is there when the scheduler has its iteration's result; it goes from there through SGLang's HTTP
process to the client. For runs whose server wrote its iterations: the gaps between the results that hold
a request's tokens beside those that its client saw, and how much later than the promptest token of the
run tokens came. For all runs: pauses, in which nobody got a token though iterations went on, so that
tokens of many came one right after the other when it ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from layered_sglang.bench.report.data import Record, Results, read_results
from layered_sglang.bench.store import Store, StoreError
from layered_sglang.bench.summary import summarise
from layered_sglang.bench.table import as_markdown

#: Nobody gets a token for at least this long in a pause, seconds: longer than most iterations.
PAUSE = 0.3
#: After one, a request has this many gaps of less than this, seconds: shorter than a GPU's iterations.
BURST, BURST_GAP = 3, 3.5e-3
#: ... among so many tokens that came next.
LOOKED_AT = 10


def arrivals(row: Record) -> np.ndarray:
    """When a request's tokens came, seconds after the run's start, float64 [output tokens]."""
    if row["ttft_s"] is None:
        return np.empty(0)
    gaps: np.ndarray = np.cumsum([row["ttft_s"], *row["itls_s"]])
    return row["sent_s"] + gaps


def results_of(run: Record) -> dict[str, np.ndarray]:
    """Request id -> when the scheduler had the results that hold its tokens, ``time.monotonic()`` of the
    server; empty where it wrote no iterations."""
    if not run.get("trace"):
        return {}
    lines = Store(Path(run["folder"])).lines(f"traces/{run['trace']}")
    found: dict[str, list[float]] = defaultdict(list)
    begin, end = run["monotonic"]
    last = 0.0
    for line in sorted(lines, key=lambda line: line["iteration"]):
        # As the log counts: from the result before it, or from its launch if that was later.
        last = max(last, line["time"]) + line["seconds"]
        if begin <= line["time"] <= end:
            for rid in line["samples"]:
                found[rid].append(last)
    return {rid: np.array(times) for rid, times in found.items()}


def matched(run: Record, rows: Sequence[Record]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each of the run's requests: when its client got its tokens, and when the scheduler had them.

    With overlap the scheduler launches one iteration more than a request has tokens.
    """
    results = results_of(run)
    pairs = []
    for row in rows:
        client, server = arrivals(row), results.get(row["rid"], np.empty(0))
        if len(client) and len(server) >= len(client):
            pairs.append((client, server[: len(client)]))
    return pairs


def pauses(rows: Sequence[Record]) -> list[tuple[float, float]]:
    """Spans in which no token came though iterations went on, seconds after the run's start."""
    times = [arrivals(row) for row in rows]
    every: np.ndarray = np.sort(np.concatenate(times)) if times else np.empty(0)
    found = []
    for at in np.flatnonzero(np.diff(every) > PAUSE):
        before, after = float(every[at]), float(every[at + 1])
        for own in times:
            n = int(np.searchsorted(own, after))
            close = np.diff(own[n : n + LOOKED_AT]) < BURST_GAP
            if n and close.sum() >= BURST:
                found.append((before, after))
                break
    return found


def undisturbed(results: Results) -> Results:
    """The same benchmark with gaps as the scheduler's results had them, where iterations were written;
    elsewhere without the gaps that a pause is in. TTFT and E2E are the clients'."""
    by_run: dict[int, list[Record]] = defaultdict(list)
    for row in results.rows:
        by_run[row["run"]].append(row)
    rows: list[Mapping[str, Any]] = []
    for run in results.runs:
        own, told = by_run[run["run"]], results_of(run)
        spans = [] if told else pauses(own)
        for row in own:
            times = arrivals(row)
            if len(told.get(row["rid"], ())) >= len(times) > 0:
                gaps = np.diff(told[row["rid"]][: len(times)])
            else:
                gaps = np.diff(times)
                kept: np.ndarray = np.ones(len(gaps), dtype=bool)
                for begin, end in spans:
                    kept &= (times[1:] <= begin + 1e-6) | (times[:-1] >= end - 1e-6)
                gaps = gaps[kept]
            rows.append({**row, "itls_s": gaps.tolist()})
    short = results.scenario.get("short_prompt_tokens")
    summary = summarise(rows, results.runs, results.targets, short)
    return dataclasses.replace(results, rows=rows, summary=summary)


def table(results: Results) -> list[list[str]]:
    """Cells: a row for each run."""
    heads = ["", "ITL P99 of results, ms", "of clients, ms", "longest", "of clients"]
    cells = [[*heads, "late P50, P99, most, ms", "pauses, s (at)"]]
    for run in sorted(results.runs, key=lambda run: run["run"]):
        rows = [row for row in results.rows if row["run"] == run["run"]]
        rate = "" if run["rate"] is None else f"{run['rate']:g}/s"
        title = " ".join(filter(None, [run["workload"], rate, run["system"]]))
        gaps = 1e3 * np.concatenate([np.diff(arrivals(row)) for row in rows])
        if not len(gaps):
            continue
        own, late = ["–", "–"], "–"
        pairs = matched(run, rows)
        if pairs:
            server = 1e3 * np.concatenate([np.diff(times) for _, times in pairs])
            own = [f"{np.percentile(server, 99):.1f}", f"{server.max():.1f}"]
            delays = 1e3 * np.concatenate([client - times for client, times in pairs])
            delays -= delays.min()
            late = ", ".join(f"{value:.1f}" for value in np.percentile(delays, (50, 99, 100)))
        found = ", ".join(f"{end - begin:.2f} ({begin:.1f})" for begin, end in pauses(rows))
        seen = [f"{np.percentile(gaps, 99):.1f}", f"{gaps.max():.1f}"]
        cells.append([title, own[0], seen[0], own[1], seen[1], late, found])
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, metavar="DIR", nargs="+", help="results of bench run")
    args = parser.parse_args(argv)
    try:
        for folder in args.folders:
            print("\n".join(as_markdown(table(read_results(folder)))))
    except StoreError as error:
        print(f"delivery: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
