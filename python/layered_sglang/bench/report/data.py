"""Reads back what ``bench run`` stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layered_sglang.bench.spec.cells import Point
from layered_sglang.bench.spec.target import Target
from layered_sglang.bench.store import Store, StoreError
from layered_sglang.bench.summary import summarise

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """A benchmark's results.

    Attributes:
        folder: where the report goes.
        scenario: as ``store.describe`` wrote it.
        machine, systems: of systems.json.
        rows: of these runs.
        runs: the complete ones of cells, each with its ``folder``; those of searches end early.
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

    def figures(self, system: str, point: Point) -> Mapping[str, Mapping[str, float]]:
        """Each metric's ``median``, ``low`` and ``high`` over repeats; empty where not measured."""
        for record in self.summary:
            if record["system"] == system and Point.of(record) == point:
                found: Mapping[str, Mapping[str, float]] = record["metrics"]
                return found
        return {}

    def metrics(self, system: str, point: Point) -> dict[str, float]:
        """The medians over repeats; empty where it was not measured."""
        return {key: value["median"] for key, value in self.figures(system, point).items()}


def read_results(folder: Path, *others: Path) -> Results:
    """Read a folder, and others that hold more repeats or cells of the same scenario.

    The machine and its versions are the first one's.

    Raises:
        StoreError: one of them holds no results, or those of another scenario.
    """
    scenario, described = _described(folder)
    runs: list[Record] = []
    rows: list[Record] = []
    systems: dict[str, Any] = {}
    for each in (folder, *others):
        own, told = _described(each)
        if own != scenario:
            raise StoreError(f"{each} holds results of another scenario than {folder}")
        systems |= told["systems"]
        found = _complete(each, len(runs))
        runs, rows = runs + found[0], rows + found[1]
    stores = [Store(each) for each in (folder, *others)]
    searches = [line for store in stores for line in store.lines("searches.jsonl")]
    if not runs and not searches:
        raise StoreError(f"{folder} holds no complete run yet")
    targets = tuple(Target(**target) for target in scenario["targets"])
    order = [system["name"] for system in scenario["systems"]]
    runs.sort(key=lambda run: order.index(run["system"]))
    return Results(
        folder=folder,
        scenario=scenario,
        machine=described["machine"],
        systems=systems,
        targets=targets,
        rows=rows,
        runs=runs,
        summary=summarise(rows, runs, targets, scenario.get("short_prompt_tokens")),
        failures=[line for store in stores for line in store.lines("failures.jsonl")],
        searches=searches,
        commands=[
            line
            for store in stores
            for line in (store.folder / "commands.txt").read_text(encoding="utf-8").splitlines()
        ],
    )


def _complete(folder: Path, first: int) -> tuple[list[Record], list[Record]]:
    """A folder's complete runs of cells, numbered from ``first`` on, and their rows."""
    store, numbers = Store(folder), {}
    runs: list[Record] = []
    for run in store.lines("runs.jsonl"):
        if run["search"] is None:
            numbers[run["run"]] = number = first + len(runs)
            runs.append({**run, "run": number, "folder": str(folder)})
    rows: list[Record] = [
        {**row, "run": numbers[row["run"]]}
        for row in store.lines("rows.jsonl")
        if row["run"] in numbers
    ]
    return runs, rows


def _described(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A folder's scenario.json and systems.json."""
    store = Store(folder)
    try:
        return store.read("scenario.json"), store.read("systems.json")
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} holds no results of bench run: {error}") from error
