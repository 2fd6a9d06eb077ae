"""Iterations that a benchmark's layered servers wrote: a fit without another minute of the GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layered_sglang.calibration.errors import CalibrationError
from layered_sglang.calibration.rows import Row, read_rows

#: What servers must have in common to be fitted together.
SAME = ("device", "model", "attention", "tp_size", "shape", "overlap")


def read_stored(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Rows of the measured runs in a folder of ``bench run``, and their server's cost model.

    Raises:
        CalibrationError: there are none, or of servers that differ.
    """
    try:
        systems = json.loads((folder / "systems.json").read_text())["systems"]
        runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    except (OSError, ValueError, KeyError) as error:
        raise CalibrationError(f"{folder} holds no results of bench run: {error}") from error
    costs = None
    rows: list[Row] = []
    for run in runs:
        if not run.get("trace"):
            continue
        own = _cost_model(systems, run["trace"])
        if own is None:
            continue
        costs = costs or own
        differing = [name for name in SAME if own[name] != costs[name]]
        if differing:
            raise CalibrationError(
                f"{folder} has iterations of servers that differ in {', '.join(differing)}; keep one"
            )
        lines = _within(folder / "traces" / run["trace"], run["monotonic"])
        rows += read_rows(
            lines, costs["shape"]["num_layers"], costs["overlap"], costs["device"] == "cpu"
        )
    if costs is None:
        raise CalibrationError(f"{folder} has no iterations of a server that plans layer groups")
    return costs, rows


def _cost_model(systems: dict[str, Any], trace: str) -> dict[str, Any] | None:
    """Of the server that wrote a trace: its file is named after the system and the start."""
    info = systems.get(trace.rsplit("-", 1)[0], {}).get("server_info", {})
    found: dict[str, Any] | None = info.get("layered_sglang", {}).get("cost_model")
    return found


def _within(path: Path, window: list[float]) -> Iterator[str]:
    """Lines of iterations that were launched within a run, not while the server warmed up."""
    start, end = window
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                if start <= json.loads(line)["time"] <= end:
                    yield line
            except (ValueError, KeyError):
                continue  # cut off
