"""Fixtures shared by tests against real servers."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import pickle
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
from harness import Answer, Request, free_port, generate_all, running, stock_command
from layered_sglang import local_server
from layered_sglang.model_zoo import find_preset, write_model


@pytest.fixture(scope="session")
def make_model(tmp_path_factory) -> Callable[[str], Path]:
    """``make_model(preset)``: folder of a tiny model, made once a run."""
    made: dict[str, Path] = {}

    def make(preset: str = "tiny") -> Path:
        if preset not in made:
            folder = tmp_path_factory.mktemp("models") / preset
            made[preset] = write_model(find_preset(preset), folder).directory
        return made[preset]

    return make


@pytest.fixture(scope="session")
def ask_stock(make_model, tmp_path_factory) -> Callable[..., list[list[Answer]]]:
    """``ask_stock(requests, *flags, at_once=12, model="tiny")``: stock SGLang's answers.

    The radix cache is off. One server answers for all modules of a worker that ask with the same flags
    one after another, and an answer is asked for once a run: workers share a file of them. Who asks for
    requests one at a time gets answers that were given so.
    """
    runs = tmp_path_factory.getbasetemp()
    shared = runs.parent if "PYTEST_XDIST_WORKER" in os.environ else runs

    with ExitStack() as stack:
        serving: tuple[str, tuple[str, ...]] | None = None
        server = None

        def ask(
            requests: list[Request], *flags: str, at_once: int = 12, model: str = "tiny"
        ) -> list[list[Answer]]:
            nonlocal serving, server
            key = hashlib.sha256(repr((flags, model)).encode()).hexdigest()
            with open(shared / f"stock-answers-{key[:16]}", "ab+") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                held.seek(0)
                content = held.read()
                alone, all_known = pickle.loads(content) if content else ({}, {})
                known = alone if at_once == 1 else all_known
                if missing := [request for request in requests if request not in known]:
                    if serving != (model, flags):
                        stack.close()
                        command = stock_command(
                            make_model(model), free_port(), "--disable-radix-cache", *flags
                        )
                        log = tmp_path_factory.mktemp("stock") / "server.log"
                        server, serving = stack.enter_context(running(command, log)), (model, flags)
                    missing = list(dict.fromkeys(missing))
                    answers = asyncio.run(generate_all(server, missing, at_once=at_once))
                    new = dict(zip(missing, answers, strict=True))
                    known |= new
                    all_known |= new
                    held.truncate(0)
                    held.write(pickle.dumps((alone, all_known)))
                return [known[request] for request in requests]

        yield ask


@dataclass
class Started:
    """Servers that commands of this package start in a test's process.

    Attributes:
        anew: the module whose servers are started as a user would, not forked.
    """

    servers: list[Any] = field(default_factory=list)
    anew: str = ""

    def popen(self, command: Sequence[str], **how: Any) -> Any:
        start = subprocess.Popen if self.anew in command else processes.popen
        self.servers.append(start(command, **how))
        return self.servers[-1]


@pytest.fixture
def started(monkeypatch) -> Iterator[Started]:
    """... and which are forked, as a test's own are. Signal handlers that a command sets are put back."""
    started = Started()
    alike = SimpleNamespace(**{**vars(subprocess), "Popen": started.popen})
    monkeypatch.setattr(local_server, "subprocess", alike)
    # SGLang looks only every five seconds whether it was told to end.
    at_once = SimpleNamespace(SIGTERM=signal.SIGKILL, SIGKILL=signal.SIGKILL)
    monkeypatch.setattr(local_server, "signal", at_once)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield started
    for number, handler in before.items():
        signal.signal(number, handler)
