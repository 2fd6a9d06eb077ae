"""Starts one real server in its own process group, waits until it answers, and stops it again."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 300
#: Where free ports are looked for.
PORTS = (12_000, 32_000)
LOG_LINES = 25
#: SGLang's last line of its start-up, after its own warm-up request.
READY = "ready to roll"
#: Threads of several processes that spin for one another's cores cost more than they give.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class ServerFailed(Exception):
    """The server did not start, or ended. ``log_end`` is the end of its log."""

    def __init__(self, message: str, log_end: str) -> None:
        super().__init__(message)
        self.log_end = log_end


@dataclass(frozen=True)
class Server:
    """A started server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def check_alive(self, seconds: float = 0.0) -> None:
        """Raise ServerFailed when the process has ended, or ends within ``seconds``."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        status = self.process.poll()
        if status is not None:
            raise self.failed(f"the server ended with status {status}")

    def failed(self, message: str) -> ServerFailed:
        lines = self.log.read_text(errors="replace").splitlines()
        return ServerFailed(message, "\n".join(lines[-LOG_LINES:]))


@contextmanager
def running_server(
    command: Sequence[str],
    log: Path,
    progress: Callable[[float], None],
    environment: Mapping[str, str] | None = None,
    start_seconds: float = START_SECONDS,
) -> Iterator[Server]:
    """A server that answers, until the block ends.

    Args:
        command: starts the server; host and port are added here.
        log: file for the server's output.
        progress: called with the seconds since the start, a few times a second, until it answers.
        environment: variables beside this process's own.
        start_seconds: after which a server that does not answer has failed.

    Raises:
        ServerFailed: it ended, or did not answer in time.
    """
    port = free_port()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, **os.environ, **(environment or {})},
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_ready(server, progress, start_seconds)
        yield server
    finally:
        _stop(process)


def free_port() -> int:
    """A port of this machine that nobody listens on now.

    Below those that the system gives to outgoing connections: one of those could take it while the
    server still loads.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _wait_ready(server: Server, progress: Callable[[float], None], start_seconds: float) -> None:
    start = time.monotonic()
    while READY not in server.log.read_text(errors="replace"):
        server.check_alive()
        seconds = time.monotonic() - start
        if seconds > start_seconds:
            raise server.failed(f"the server was not ready within {start_seconds:.0f} s")
        progress(seconds)
        time.sleep(0.25)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: SGLang's scheduler and detokenizer are processes of their own."""
    for sig, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sig)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    # A GPU's memory is free when the last of them is gone.
    deadline = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
