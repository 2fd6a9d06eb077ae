"""Reads back what ``bench run`` stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layered_sglang.bench.cells import Point
from layered_sglang.bench.store import Store, StoreError
from layered_sglang.bench.summary import summarise
from layered_sglang.bench.target import Target

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """A benchmark's folder.

    Attributes:
        scenario: as ``store.describe`` wrote it.
        machine, systems: of systems.json.
        rows: of these runs.
        runs: the complete ones of cells; those of searches end early.
        summary: see ``summary.summarise``.
        failures, searches: the lines of their files.
        commands: how the benchmark was called.
    """

    folder: Path
    scenario: Mapping[str, Any]
    machine: Mapping[str, Any]
    systems: Mapping[str, Any]
    targets: tuple[Target, ...]
    rows: Sequence[Record]
    runs: Sequence[Record]
    summary: Sequence[Record]
    failures: Sequence[Record]
    searches: Sequence[Record]
    commands: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Systems with a complete run, in the scenario's order."""
        measured = {run["system"] for run in self.runs}
        return [s["name"] for s in self.scenario["systems"] if s["name"] in measured]

    def at(self, point: Point) -> list[str]:
        """Systems that were measured at a point, in the scenario's order."""
        measured = {run["system"] for run in self.runs if Point.of(run) == point}
        return [name for name in self.names if name in measured]

    def rows_of(self, system: str, point: Point) -> list[Record]:
        return [row for row in self.rows if row["system"] == system and Point.of(row) == point]

    def metrics(self, system: str, point: Point) -> dict[str, float]:
        """The medians over repeats; empty where it was not measured."""
        for record in self.summary:
            if record["system"] == system and Point.of(record) == point:
                return {key: value["median"] for key, value in record["metrics"].items()}
        return {}


def read_results(folder: Path) -> Results:
    """Read a folder.

    Raises:
        StoreError: it holds no results.
    """
    store = Store(folder)
    try:
        scenario, described = store.read("scenario.json"), store.read("systems.json")
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} holds no results of bench run: {error}") from error
    runs = [run for run in store.lines("runs.jsonl") if run["search"] is None]
    searches = store.lines("searches.jsonl")
    if not runs and not searches:
        raise StoreError(f"{folder} holds no complete run yet")
    complete = {run["run"] for run in runs}
    rows = [row for row in store.lines("rows.jsonl") if row["run"] in complete]
    targets = tuple(Target(**target) for target in scenario["targets"])
    order = [system["name"] for system in scenario["systems"]]
    runs.sort(key=lambda run: order.index(run["system"]))
    commands = (folder / "commands.txt").read_text(encoding="utf-8").splitlines()
    return Results(
        folder=folder,
        scenario=scenario,
        machine=described["machine"],
        systems=described["systems"],
        targets=targets,
        rows=rows,
        runs=runs,
        summary=summarise(rows, runs, targets, scenario.get("short_prompt_tokens")),
        failures=store.lines("failures.jsonl"),
        searches=searches,
        commands=commands,
    )
