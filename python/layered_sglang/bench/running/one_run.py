"""One run: a cell's requests sent to a live system, timed, metered and stored."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import datetime, timezone

from layered_sglang.bench.console import Console, Errors
from layered_sglang.bench.running.client import Row, new_rid
from layered_sglang.bench.running.drive import Progress, drive
from layered_sglang.bench.running.expert_bytes import read_expert_loads
from layered_sglang.bench.running.live import Live
from layered_sglang.bench.running.measure import Gpus, Meter
from layered_sglang.bench.running.rate_search import Verdict
from layered_sglang.bench.spec.cells import Cell
from layered_sglang.bench.spec.scenario import Scenario
from layered_sglang.bench.spec.search import Search
from layered_sglang.bench.spec.workload import make_requests
from layered_sglang.bench.store import Store

#: A client that sends a request so much later than it should is told of: it received tokens late, too.
LATE_SECONDS = 0.02
#: A killed server's connections are closed a moment before its process has ended.
ENDING_SECONDS = 2.0


class Decided(Exception):
    """A search's run has told what it was to tell."""


class Runner:
    """Measures cells and stores what it sees.

    Args:
        check: called with the live system, and with how many seconds to wait for its end; what it raises
            ends the run. A few times a second it is called with 0.
    """

    def __init__(
        self,
        scenario: Scenario,
        store: Store,
        gpus: Gpus,
        console: Console,
        check: Callable[[Live, float], None],
    ) -> None:
        self._scenario = scenario
        self._store = store
        self._gpus = gpus
        self._console = console
        self._check = check

    def run(self, live: Live, cell: Cell, repeat: int, search: Search | None = None) -> bool | None:
        """One run of ``cell``, ready to go: ``live.prepare`` was called.

        Returns:
            For a search whether enough requests kept its target; the run ends when that is known.
        """
        scenario, number = self._scenario, self._store.new_run()
        workload = scenario.workloads[cell.workload]
        requests = make_requests(workload, scenario.model.vocabulary, cell.rate, repeat)
        rows = [
            Row(
                *(cell.system, cell.workload, repeat, cell.rate),
                *(r.index, new_rid(), r.arrival, len(r.prompt)),
            )
            for r in requests
        ]
        title = f"{cell.system}, repeat {repeat + 1} of {scenario.repeats}"
        title += f", {cell.workload}" if cell.workload else ""
        title += f", {cell.rate:g}/s" if cell.rate is not None else ""
        errors = Errors(self._console, title)
        verdict = Verdict(search, rows) if search is not None else None

        def finished(row: Row) -> None:
            self._store.row(number, row)
            errors.add(row.error)
            if verdict is not None:
                verdict.finished(row)

        def report(progress: Progress) -> None:
            self._console.bar(title, progress, len(rows))
            if verdict is not None and verdict.look(progress.seconds) is not None:
                raise Decided

        fields = scenario.system(cell.system).request
        began, start = datetime.now(timezone.utc), time.monotonic()
        with Meter(self._gpus, live.log) as meter:
            try:
                duration = asyncio.run(
                    drive(
                        live.endpoint,
                        requests,
                        rows,
                        scenario.request_seconds,
                        report,
                        finished,
                        lambda: self._check(live, 0.0),
                        fields,
                    )
                )
            except Decided:
                duration = time.monotonic() - start
            measured = meter.result()
        end = time.monotonic()
        self._check(live, ENDING_SECONDS if any(row.error for row in rows) else 0.0)
        if live.launch is not None and live.launch.experts is not None:
            measured |= read_expert_loads(live.launch.experts, start, end)
        kept = None if verdict is None else bool(verdict.look(duration))
        record = {
            "run": number,
            "system": cell.system,
            "workload": cell.workload,
            "repeat": repeat,
            "rate": cell.rate,
            "search": None if search is None else {"target": search.target.name, "kept": kept},
            "began": began.isoformat(timespec="seconds"),
            "duration_s": round(duration, 4),
            "monotonic": [start, end],
            "trace": live.launch.trace.name if live.launch and live.launch.trace else None,
            "warm_up": live.warm_up_of(cell.system),
            **measured,
        }
        self._store.append("runs.jsonl", json.dumps(record))
        answered = sum(row.e2e_s is not None and not row.error for row in rows)
        late = max((row.sent_s - row.arrival for row in rows if row.sent_s), default=0.0)
        if late > LATE_SECONDS:
            self._console.line(
                f"{title}: a request was sent {1000 * late:.0f} ms after its time; this process stood "
                "still, so gaps of that length may be its own. Give it a core of its own"
            )
        told = "" if kept is None else f"; the target is {'kept' if kept else 'missed'}"
        self._console.line(f"{title}: {answered} of {len(rows)} answered in {duration:.1f} s{told}")
        return kept
