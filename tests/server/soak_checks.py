"""What has to hold of a server between two phases of the soak."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
from harness import Server


class Checks:
    """Looks at a server that is idle.

    Args:
        server: started with ``--enable-metrics`` and ``--layered-trace-file``.
        trace: that file.
        layers: of its model.
    """

    def __init__(self, server: Server, trace: Path, layers: int) -> None:
        self._server = server
        self._trace = trace
        self._layers = layers

    def wrong(self) -> list[str]:
        """What does not hold, one line each."""
        server = self._server
        server.wait_idle()
        found = []
        if held := server.held_tokens():
            found.append(f"{held} tokens of KV held by nobody")
        return found + self._counters()

    def unhealthy(self) -> list[str]:
        """SGLang's own check takes a second."""
        status = self._server.get("/health_generate").status_code
        return [] if status == 200 else [f"/health_generate answers {status}"]

    def _counters(self) -> list[str]:
        """Cohorts and iterations as counted, against the trace."""
        counters = self._server.counters()
        lines = [json.loads(line) for line in self._trace.read_text().splitlines()]
        groups = [line for line in lines if line["layers"] is not None]
        found, at = [], {}
        for line in groups:
            cohort = json.dumps(line["cohort"])
            start, end = line["layers"]
            if start != at.get(cohort, 0) and start != 0:
                found.append(f"iteration {line['iteration']}: layer {start}, not {at.get(cohort)}")
            at[cohort] = end % self._layers
        finished = sum(line["layers"][1] == self._layers for line in groups)
        ended = finished + counters["aborted_cohorts"] + counters["restarted_cohorts"]
        if counters["cohorts"] != ended:
            found.append(f"{ended} cohorts ended, {finished} of them finished: {counters}")
        iterations = sum(n for name, n in counters.items() if name.startswith("iterations:"))
        if iterations != len(lines):
            found.append(f"{iterations} iterations counted, {len(lines)} traced")
        return found

    def memory(self) -> float:
        """MiB of the largest process of the server's: its scheduler, which holds the weights."""
        family = psutil.Process(self._server.process.pid).children(recursive=True)
        return max(process.memory_info().rss for process in family) / 2**20
