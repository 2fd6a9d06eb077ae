"""A benchmark from start to end: servers, warm-up, runs in turn; the rest goes on where one fails."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from layered_sglang.bench.console import Console
from layered_sglang.bench.running.client import Endpoint
from layered_sglang.bench.running.launch import (
    Launch,
    describe_systems,
    make_launch,
    write_model_folder,
)
from layered_sglang.bench.running.live import Live, SwitchRefused
from layered_sglang.bench.running.measure import Gpus, first_model, server_info
from layered_sglang.bench.running.one_run import Runner
from layered_sglang.bench.running.rate_search import search_rate
from layered_sglang.bench.running.warm_up import WarmUpFailed, warm_up
from layered_sglang.bench.spec.cells import Cell, in_repeat
from layered_sglang.bench.spec.scenario import Scenario
from layered_sglang.bench.spec.search import Search
from layered_sglang.bench.spec.system import System
from layered_sglang.bench.store import Store
from layered_sglang.local_server import ServerFailed, running_server

#: A run's last answer comes after this many times the seconds in which its requests arrive, or so.
ANSWERED = 1.2


class TimeUp(Exception):
    """The time limit is reached."""


class Session:
    """Runs a scenario.

    Args:
        store: where results go.
        scratch: for what need not be kept.
        deadline: ``time.monotonic()`` at which the run stops.
    """

    def __init__(
        self, scenario: Scenario, store: Store, scratch: Path, deadline: float, console: Console
    ) -> None:
        self._scenario = scenario
        self._store = store
        self._scratch = scratch
        self._deadline = deadline
        self._console = console
        self._gpus = Gpus()
        self._model = ""
        self._done = store.done()
        self._searched = store.searched()
        self._failed: set[str] = set()
        self._runner = Runner(scenario, store, self._gpus, console, self._check)

    def run(self) -> bool:
        """All that is to be run and is not yet. Returns whether all of it was measured."""
        scenario = self._scenario
        self._model = write_model_folder(scenario, self._scratch / "model")
        describe_systems(self._store, scenario, self._gpus)
        lives = math.ceil(scenario.repeats / scenario.repeats_per_start)
        self._console.line(self._outlook(lives))
        try:
            for life in range(lives):
                first = life * scenario.repeats_per_start
                last = min(first + scenario.repeats_per_start, scenario.repeats)
                self._life(life, range(first, last))
        except TimeUp:
            self._console.line("the time limit is reached; the same command goes on from here")
            return False
        return not self._failed

    def _outlook(self, lives: int) -> str:
        """What is still to be run."""
        scenario, starts, runs, seconds = self._scenario, 0, 0, 0.0
        for life in range(lives):
            first = life * scenario.repeats_per_start
            repeats = range(first, min(first + scenario.repeats_per_start, scenario.repeats))
            for system in scenario.systems:
                cells = [c for repeat in repeats for c in self._open(system, repeat)]
                workloads = [scenario.workloads[cell.workload] for cell in cells]
                starts += bool(cells) and system.kind != "url"
                runs += len(cells)
                seconds += sum(w.duration or 0.0 for w in workloads)
        arrive = f"; requests arrive for {seconds:.0f} s in all" if seconds else ""
        return f"{runs} runs in {starts} server starts{arrive}"

    def _life(self, life: int, repeats: Sequence[int]) -> None:
        """These repeats, each within one start of the servers.

        Every other time the systems take turns in the other order: what drifts hits all alike.
        """
        wanted = [
            system
            for system in self._scenario.systems
            if system.server == system.name
            and any(
                self._open(system, repeat) or self._to_search(system, repeat) for repeat in repeats
            )
        ]
        if self._scenario.resident == "one":
            for system in wanted[:: 1 if life % 2 == 0 else -1]:
                with ExitStack() as stack:
                    live = self._enter(stack, system, life, repeats)
                    for repeat in repeats:
                        if live is None or not self._runs(live, repeat):
                            break
            return
        with ExitStack() as stack:
            entered = [self._enter(stack, system, life, repeats) for system in wanted]
            up = [live for live in entered if live is not None]
            for repeat in repeats:
                for live in up[:: 1 if repeat % 2 == 0 else -1]:
                    if not self._runs(live, repeat):
                        up = [other for other in up if other is not live]

    def _open(self, server: System, repeat: int) -> list[Cell]:
        """Cells on this server that are still to be measured, in the scenario's order."""
        return [
            cell
            for cell in self._scenario.cells
            if self._scenario.system(cell.system).server == server.name
            and in_repeat(cell.only_repeats, repeat)
            and (cell, repeat) not in self._done
            and cell.system not in self._failed
        ]

    def _to_search(self, server: System, repeat: int) -> list[tuple[Search, str]]:
        """Searches on this server that are still to be made, with their systems."""
        return [
            (search, name)
            for search in self._scenario.searches
            for name in search.systems
            if self._scenario.system(name).server == server.name
            and in_repeat(search.only_repeats, repeat)
            and (name, repeat, search.workload, search.target.name) not in self._searched
            and name not in self._failed
        ]

    def _enter(
        self, stack: ExitStack, system: System, life: int, repeats: Sequence[int]
    ) -> Live | None:
        """The system's server, started and warm; None when that failed, which is noted."""
        try:
            live = stack.enter_context(self._started(system, life))
            systems = self._to_warm_up(system, repeats)
            for other in systems:
                if len(systems) > 1 or other.planning:
                    live.plan(other)
                self._warm_up(live, other)
            live.warmed_up()
            return live
        except ServerFailed as failure:
            self._fail_server(system, str(failure), failure.log_end)
        except (WarmUpFailed, SwitchRefused) as failure:
            self._fail_server(system, str(failure))
        return None

    def _to_warm_up(self, server: System, repeats: Sequence[int]) -> list[System]:
        """Systems that need a warm-up of their own: SGLang's schedules run other kernels each."""
        wanted = {
            name
            for repeat in repeats
            for name in (
                *(cell.system for cell in self._open(server, repeat)),
                *(name for _, name in self._to_search(server, repeat)),
            )
        }
        systems = [system for system in self._scenario.systems if system.name in wanted]
        if server.kind == "stock" and any(system.planning for system in systems):
            return systems
        return [server]

    def _warm_up(self, live: Live, system: System) -> None:
        seen = warm_up(
            self._scenario,
            live.endpoint,
            self._prefixed(system.name),
            lambda: self._check(live),
            system.request,
        )
        live.warm_ups[system.name] = seen
        unstable = "" if seen["stable"] else ", not yet stable"
        seconds = ", ".join(f"{s:.1f}" for s in seen["seconds"])  # type: ignore[attr-defined]
        self._console.line(f"{system.name}: ready; warm-up rounds took {seconds} s{unstable}")

    @contextmanager
    def _started(self, system: System, life: int) -> Iterator[Live]:
        if system.kind == "url":
            model = system.model or first_model(system.url)
            yield Live(system, Endpoint(system.url, False, model), None, None)
            return
        name = f"{system.name}-{life}"
        trace = (self._store.folder / "traces" / f"{name}.jsonl").absolute()
        launch = make_launch(
            self._scenario, system, self._model, self._scratch, bool(len(self._gpus)), trace
        )
        log = self._store.folder / "logs" / f"{name}.log"

        def progress(seconds: float) -> None:
            self._console.show(f"{system.name}: starting the server, {seconds:.0f} s")
            self._check_time()

        with running_server(
            launch.command, log, progress, launch.environment, self._scenario.start_seconds
        ) as server:
            self._describe(system, launch, server.url)
            yield Live(system, Endpoint(server.url, True), server, launch)
            self._console.show(f"{system.name}: stopping the server")

    def _describe(self, system: System, launch: Launch, url: str) -> None:
        describe_systems(self._store, self._scenario, self._gpus, system, launch, server_info(url))

    def _runs(self, live: Live, repeat: int) -> bool:
        """One repeat of every cell and search on this server; False when the server failed."""
        try:
            for cell in self._open(live.system, repeat):
                if cell.system not in self._failed:
                    self._measure(live, cell, repeat)
            for search, name in self._to_search(live.system, repeat):
                if name not in self._failed:
                    self._search(live, search, name, repeat)
        except ServerFailed as failure:
            self._fail_server(live.system, str(failure), failure.log_end)
            return False
        return True

    def _measure(self, live: Live, cell: Cell, repeat: int, search: Search | None = None) -> bool:
        """One run; whether its system took part, and in a search whether it kept the target."""
        scenario = self._scenario
        system, workload = scenario.system(cell.system), scenario.workloads[cell.workload]
        # What cannot end before the time limit is not begun.
        self._check_time(ANSWERED * (workload.duration or 0.0) if search is None else 0.0)
        on_it = [s for s in scenario.systems if s.server == live.system.name]
        try:
            live.prepare(system, workload, any(s.planning for s in on_it))
        except SwitchRefused as refused:
            self._check(live)
            self._fail(system, str(refused))
            return False
        return self._runner.run(live, cell, repeat, search) is not False

    def _search(self, live: Live, search: Search, name: str, repeat: int) -> None:
        known = self._store.verdicts(name, repeat, search.workload, search.target.name)

        def keeps(rate: float) -> bool:
            if rate not in known and name not in self._failed:
                known[rate] = self._measure(live, Cell(name, search.workload, rate), repeat, search)
            return known.get(rate, False)

        best = search_rate(search, name, keeps)
        if name in self._failed:
            return
        record = {
            "system": name,
            "repeat": repeat,
            "workload": search.workload,
            "target": search.target.name,
            "rate": best,
            "tried": {f"{rate:g}": kept for rate, kept in sorted(known.items())},
        }
        self._store.append("searches.jsonl", json.dumps(record))
        found = "none" if best is None else f"{best:.2f}/s"
        self._console.line(f"{name}: highest rate within {search.target.name}: {found}")

    def _check(self, live: Live, seconds: float = 0.0) -> None:
        self._check_time()
        if live.server is not None:
            live.server.check_alive(seconds)

    def _check_time(self, more: float = 0.0) -> None:
        if time.monotonic() + more > self._deadline:
            raise TimeUp

    def _fail_server(self, system: System, message: str, log_end: str = "") -> None:
        """Note a failure of a server; all systems on it are left out from here on."""
        self._fail(system, message, log_end)
        self._failed |= {s.name for s in self._scenario.systems if s.server == system.name}

    def _fail(self, system: System, message: str, log_end: str = "") -> None:
        """Note a failure; the others go on without this system."""
        self._failed.add(system.name)
        record = {"system": system.name, "error": message, "log_end": log_end}
        self._store.append("failures.jsonl", json.dumps(record))
        self._console.line(f"{system.name}: {message}; it is left out from here on")
        for line in log_end.splitlines():
            self._console.line(f"  | {line}")

    def _prefixed(self, name: str) -> Callable[[str], None]:
        return lambda text: self._console.show(f"{name}: {text}")
