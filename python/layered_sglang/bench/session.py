"""A benchmark from start to end: servers, warm-up, runs in turn; the rest goes on where one fails."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from layered_sglang.bench.client import Endpoint, Row, new_rid
from layered_sglang.bench.console import Console, Errors
from layered_sglang.bench.drive import Progress, drive
from layered_sglang.bench.expert_bytes import read_expert_loads
from layered_sglang.bench.measure import Gpus, Meter, describe_machine, fetch, server_info
from layered_sglang.bench.rate_search import search_rate
from layered_sglang.bench.scenario import Scenario, System
from layered_sglang.bench.store import Store
from layered_sglang.bench.summary import attainment
from layered_sglang.bench.systems import Launch, make_launch, write_model_folder
from layered_sglang.bench.warm_up import WarmUpFailed, warm_up
from layered_sglang.bench.workload import make_requests
from layered_sglang.local_server import Server, ServerFailed, running_server

FLUSH_SECONDS = 60


class TimeUp(Exception):
    """The time limit is reached."""


@dataclass
class Live:
    """A system that answers.

    Attributes:
        server: its process, None where it was not started here.
        warm_up: what was seen of the warm-up.
    """

    system: System
    endpoint: Endpoint
    server: Server | None
    launch: Launch | None
    warm_up: dict[str, object] = field(default_factory=dict)


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
        self._searched = {(s["system"], s["repeat"]) for s in store.lines("searches.jsonl")}
        self._failed: set[str] = set()
        self._described: dict[str, object] = {}

    def run(self) -> bool:
        """All that is to be run and is not yet. Returns whether all of it was measured."""
        scenario = self._scenario
        self._model = write_model_folder(scenario, self._scratch / "model")
        self._describe()
        lives = math.ceil(scenario.repeats / scenario.repeats_per_start)
        try:
            for life in range(lives):
                first = life * scenario.repeats_per_start
                last = min(first + scenario.repeats_per_start, scenario.repeats)
                self._life(life, range(first, last))
        except TimeUp:
            self._console.line("the time limit is reached; the same command goes on from here")
            return False
        return not self._failed

    def _life(self, life: int, repeats: Sequence[int]) -> None:
        """These repeats, each within one start of the servers.

        Every other time the systems take turns in the other order: what drifts hits all alike.
        """
        wanted = [
            system
            for system in self._scenario.systems
            if self._open_keys(system, repeats) and system.name not in self._failed
        ]
        if self._scenario.resident == "one":
            for system in wanted[:: 1 if life % 2 == 0 else -1]:
                with ExitStack() as stack:
                    live = self._enter(stack, system, life)
                    if live is None:
                        continue
                    for repeat in repeats:
                        if not self._runs(live, repeat):
                            break
            return
        with ExitStack() as stack:
            up = [live for s in wanted if (live := self._enter(stack, s, life)) is not None]
            for repeat in repeats:
                for live in up[:: 1 if repeat % 2 == 0 else -1]:
                    if not self._runs(live, repeat):
                        up = [other for other in up if other is not live]

    def _enter(self, stack: ExitStack, system: System, life: int) -> Live | None:
        """The system, started and warm; None when that failed, which is noted."""
        try:
            live = stack.enter_context(self._started(system, life))
            show = self._prefixed(system.name)
            live.warm_up = warm_up(self._scenario, live.endpoint, show, self._check(live))
        except ServerFailed as failure:
            self._fail(system, str(failure), failure.log_end)
        except WarmUpFailed as failure:
            self._fail(system, str(failure))
        else:
            unstable = "" if live.warm_up["stable"] else ", not yet stable"
            seconds = ", ".join(f"{s:.1f}" for s in live.warm_up["seconds"])  # type: ignore[attr-defined]
            self._console.line(f"{system.name}: ready; warm-up rounds took {seconds} s{unstable}")
            return live
        return None

    @contextmanager
    def _started(self, system: System, life: int) -> Iterator[Live]:
        if system.kind == "url":
            yield Live(system, Endpoint(system.url, False, system.model), None, None)
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
            self._describe(system, launch, server_info(server.url))
            yield Live(system, Endpoint(server.url, True), server, launch)
            self._console.show(f"{system.name}: stopping the server")

    def _runs(self, live: Live, repeat: int) -> bool:
        """One repeat at every rate; False when the system failed."""
        scenario = self._scenario
        try:
            for rate in self._rates():
                if (live.system.name, repeat, rate) not in self._done:
                    self._measure(live, repeat, rate)
            if scenario.search is not None and (live.system.name, repeat) not in self._searched:
                target = scenario.targets[0]
                best = search_rate(
                    scenario.search,
                    lambda rate: attainment(self._measure(live, repeat, rate, True), target),
                )
                record = {"system": live.system.name, "repeat": repeat, "rate": best}
                self._store.append("searches.jsonl", json.dumps(record))
                found = "none" if best is None else f"{best:.2f}/s"
                self._console.line(f"{live.system.name}: highest rate within the target: {found}")
        except ServerFailed as failure:
            self._fail(live.system, str(failure), failure.log_end)
            return False
        return True

    def _measure(
        self, live: Live, repeat: int, rate: float | None, searching: bool = False
    ) -> list[dict[str, object]]:
        """One run; its rows."""
        scenario, system = self._scenario, live.system
        requests = make_requests(scenario.workload, scenario.model.vocabulary, rate, repeat)
        number = self._store.new_run()
        rows = [
            Row(system.name, repeat, rate, r.index, new_rid(), r.arrival, len(r.prompt))
            for r in requests
        ]
        title = f"{system.name}, repeat {repeat + 1} of {scenario.repeats}"
        title += f", {rate:g}/s" if rate is not None else ""
        errors = Errors(self._console, title)

        def finished(row: Row) -> None:
            self._store.row(number, row)
            errors.add(row.error)

        def report(progress: Progress) -> None:
            self._console.bar(title, progress, len(rows))

        if live.server is not None:
            fetch(live.server.url + "/flush_cache", "POST", FLUSH_SECONDS)
        check, url = self._check(live), live.server.url if live.server else None
        began, start = datetime.now(timezone.utc), time.monotonic()
        with Meter(self._gpus, url) as meter:
            duration = asyncio.run(
                drive(
                    live.endpoint,
                    requests,
                    rows,
                    scenario.request_seconds,
                    report,
                    finished,
                    check,
                )
            )
            measured = meter.result()
        check()
        end = time.monotonic()
        if live.launch is not None and live.launch.experts is not None:
            measured |= read_expert_loads(live.launch.experts, start, end)
        record = {
            "run": number,
            "system": system.name,
            "repeat": repeat,
            "rate": rate,
            "searching": searching,
            "began": began.isoformat(timespec="seconds"),
            "duration_s": round(duration, 4),
            "monotonic": [start, end],
            "trace": live.launch.trace.name if live.launch and live.launch.trace else None,
            "warm_up": live.warm_up,
            **measured,
        }
        self._store.append("runs.jsonl", json.dumps(record))
        failed = errors.count
        self._console.line(
            f"{title}: {len(rows) - failed} of {len(rows)} answered in {duration:.1f} s"
        )
        return [row.record() for row in rows]

    def _open_keys(self, system: System, repeats: Sequence[int]) -> bool:
        if self._scenario.search is not None and any(
            (system.name, repeat) not in self._searched for repeat in repeats
        ):
            return True
        return any(
            (system.name, repeat, rate) not in self._done
            for repeat in repeats
            for rate in self._rates()
        )

    def _rates(self) -> tuple[float | None, ...]:
        """Rates to run at beside the search's; None is the workload's own."""
        return self._scenario.rates or (() if self._scenario.search is not None else (None,))

    def _check(self, live: Live) -> Callable[[], None]:
        def check() -> None:
            self._check_time()
            if live.server is not None:
                live.server.check_alive()

        return check

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TimeUp

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

    def _describe(
        self, system: System | None = None, launch: Launch | None = None, info: dict | None = None
    ) -> None:
        """Write systems.json with what is known by now."""
        if not self._described:
            known = self._store.read("systems.json") if self._store.has("systems.json") else {}
            self._described = {"systems": {}, **known, "machine": describe_machine(self._gpus)}
        systems = self._described["systems"]
        assert isinstance(systems, dict)
        if system is not None and launch is not None:
            systems[system.name] = {"command": launch.shell(), "server_info": info or {}}
        for other in self._scenario.systems:
            if other.kind == "url":
                systems[other.name] = {"command": f"runs already: {other.url}", "server_info": {}}
        self._store.write("systems.json", self._described)
