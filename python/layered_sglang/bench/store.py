"""The folder that a benchmark writes: one line a request, one line a run, logs and traces beside."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from layered_sglang.bench.running.client import Row
from layered_sglang.bench.spec.cells import Cell
from layered_sglang.bench.spec.scenario import Scenario
from layered_sglang.bench.spec.workload import Workload

#: A run: a cell and which of its repeats.
Key = tuple[Cell, int]


class StoreError(Exception):
    """The folder cannot be used. The message is one line."""


class Store:
    """Writes results as they come, so that nothing measured is lost.

    Files: ``scenario.yaml`` and ``scenario.json`` (as read), ``systems.json`` (commands, versions,
    hardware), ``rows.jsonl`` (requests), ``runs.jsonl`` (complete runs), ``searches.jsonl``,
    ``failures.jsonl``, ``logs/``, ``traces/``. A row belongs to the run of its ``run`` number; rows of
    numbers that runs.jsonl does not have are of a run that was cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.next_run = 0

    def open(self, scenario: Scenario, source: Path, command: str) -> None:
        """Make the folder, or go on in one of the same scenario.

        Raises:
            StoreError: it holds something else.
        """
        described = describe(scenario)
        earlier = self.folder / "scenario.json"
        try:
            if earlier.exists():
                if json.loads(earlier.read_text()) != described:
                    raise StoreError(
                        f"{self.folder} holds results of another scenario, or of other values of "
                        "this one; choose another folder with --output"
                    )
            elif self.folder.exists() and any(self.folder.iterdir()):
                raise StoreError(f"{self.folder} is not empty; choose another folder with --output")
            for name in ("logs", "traces"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.folder / "scenario.yaml")
            self.write("scenario.json", described)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot use {self.folder}: {error}") from error
        self.append("commands.txt", command)
        self.next_run = 1 + max((row["run"] for row in self.lines("rows.jsonl")), default=-1)

    def done(self) -> set[Key]:
        """Runs of cells that are complete, of earlier commands too."""
        return {
            (Cell(run["system"], run["workload"], run["rate"]), run["repeat"])
            for run in self.lines("runs.jsonl")
            if run["search"] is None
        }

    def searched(self) -> set[tuple[str, int, str, str]]:
        """Searches that are complete: system, repeat, workload, target."""
        return {
            (s["system"], s["repeat"], s["workload"], s["target"])
            for s in self.lines("searches.jsonl")
        }

    def verdicts(self, system: str, repeat: int, workload: str, target: str) -> dict[float, bool]:
        """Rates that a search has tried, and whether they kept its target."""
        return {
            run["rate"]: run["search"]["kept"]
            for run in self.lines("runs.jsonl")
            if run["search"] is not None
            and (run["system"], run["repeat"], run["workload"]) == (system, repeat, workload)
            and run["search"]["target"] == target
        }

    def new_run(self) -> int:
        """A number for a run that begins."""
        self.next_run += 1
        return self.next_run - 1

    def row(self, run: int, row: Row) -> None:
        self.append("rows.jsonl", json.dumps({"run": run, **row.record()}))

    def write(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def append(self, name: str, line: str) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a JSONL file; a last line that was cut off is left out."""
        path = self.folder / name
        if not path.exists():
            return []
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def describe(scenario: Scenario) -> dict[str, Any]:
    """The scenario for JSON; of a trace the number of its rows."""
    described = asdict(replace(scenario, workloads={}))
    described["workloads"] = {
        name: _describe(workload) for name, workload in scenario.workloads.items()
    }
    result: dict[str, Any] = json.loads(json.dumps(described))
    return result


def _describe(workload: Workload) -> dict[str, Any]:
    trace, arrivals = workload.trace, workload.arrivals
    described = asdict(replace(workload, trace=None))
    described["trace"] = None if trace is None else {"rows": len(trace.lengths)}
    described["arrivals"] = {
        "kind": type(arrivals).__name__,
        **{k: v for k, v in vars(arrivals).items() if k != "seconds"},
    }
    return described
