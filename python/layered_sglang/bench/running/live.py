"""A system that answers, and what is switched on its server between two runs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layered_sglang.bench.in_server.plugin import AS_STARTED, CHUNKS_KEY, MIXED_KEY, ROUTER_KEY
from layered_sglang.bench.running.client import Endpoint
from layered_sglang.bench.running.launch import Launch
from layered_sglang.bench.running.measure import fetch
from layered_sglang.bench.spec.system import CHUNK_SIZE, MIXED, System
from layered_sglang.bench.spec.workload import ROUTERS, Workload
from layered_sglang.local_server import Server

#: Where a layered server tells and takes how it plans.
PLANNING = "/layered_prefill"
FLUSH_SECONDS = 60.0
SWITCH_SECONDS = 60.0


class SwitchRefused(Exception):
    """The server did not take what a system or a workload asks for. One line."""


@dataclass
class Live:
    """A system's server or endpoint, up and warm; systems that share it are measured on it, too.

    Attributes:
        system: the one that it was started for.
        server: its process, None where it was not started here.
        warm_ups: what was seen of the warm-up, by system; the others had none of their own.
    """

    system: System
    endpoint: Endpoint
    server: Server | None
    launch: Launch | None
    warm_ups: dict[str, dict[str, object]] = field(default_factory=dict)
    _planning: Any = None

    @property
    def url(self) -> str | None:
        """Of the SGLang server that was started here."""
        return self.server.url if self.server else None

    @property
    def log(self) -> Path | None:
        """What that server writes."""
        return self.server.log if self.server else None

    def warm_up_of(self, system: str) -> dict[str, object]:
        """What was seen of the warm-up that a system's runs come after."""
        return self.warm_ups.get(system) or self.warm_ups.get(self.system.name, {})

    def warmed_up(self) -> None:
        """What the server holds now it holds until its end: Python's collector need not look at it.

        Once a start it looks at all of it, 0.4 to 0.6 s in SGLang's HTTP process, in which no client gets
        a token. A layered server does this itself, so one that is SGLang's own is told to.
        """
        if self.url is not None:
            fetch(self.url + "/freeze_gc", "POST")

    def prepare(self, system: System, workload: Workload, switches: bool) -> None:
        """Make the server ready for a run of ``system``: its policy, its router, an empty cache.

        Args:
            switches: whether systems on this server plan differently.

        Raises:
            SwitchRefused: what the server answered.
        """
        if self.url is None:
            return
        if switches:
            self.plan(system)
        if self.launch is not None and self.launch.shapes_router:
            self._set(ROUTER_KEY, int(workload.router != ROUTERS[0]))
        self._flush()

    def plan(self, system: System) -> None:
        """Make the server plan as ``system`` does.

        Raises:
            SwitchRefused: what the server answered.
        """
        assert self.url is not None
        if system.kind == "stock":
            self._set(CHUNKS_KEY, system.planning.get(CHUNK_SIZE, AS_STARTED))
            self._set(MIXED_KEY, int(system.planning.get(MIXED, AS_STARTED)))
            return
        if self._planning is None:
            self._planning = call(self.url + PLANNING, "GET")["start"]
        call(self.url + PLANNING, "PUT", dict(system.planning) or self._planning)

    def _set(self, key: str, value: int) -> None:
        """Tell the plugin that the benchmark adds to its servers."""
        assert self.url is not None
        body = {"server_args": {key: value}}
        if not all(call(self.url + "/set_internal_state", "POST", body)):
            raise SwitchRefused(f"the server did not take {key}: {value}")

    def _flush(self) -> None:
        """Empty the prefix cache; SGLang does so once it has nothing to do."""
        assert self.url is not None
        end = time.monotonic() + FLUSH_SECONDS
        while fetch(self.url + "/flush_cache", "POST", FLUSH_SECONDS) is None:
            if time.monotonic() > end or (self.server and self.server.process.poll() is not None):
                return
            time.sleep(0.2)


def call(url: str, method: str, body: Any = None) -> Any:
    """The JSON answer to a request with a JSON body.

    Raises:
        SwitchRefused: the status was not 200, with the answer's text.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=SWITCH_SECONDS) as response:
            return json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace").strip()
        raise SwitchRefused(f"{method} {url} answered {error.code}: {text[:500]}") from error
    except (OSError, ValueError) as error:
        raise SwitchRefused(f"{method} {url} failed: {error}") from error
