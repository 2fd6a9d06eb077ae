"""Starts one real server in its own process group and stops it again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 300
LOG_LINES = 25
#: SGLang's last line of its start-up, after its own warm-up request.
READY = "ready to roll"


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

    def check_alive(self) -> None:
        """Raise ServerFailed when the process has ended."""
        status = self.process.poll()
        if status is not None:
            raise self.failed(f"the server ended with status {status}")

    def failed(self, message: str) -> ServerFailed:
        lines = self.log.read_text(errors="replace").splitlines()
        return ServerFailed(message, "\n".join(lines[-LOG_LINES:]))


@contextmanager
def running_server(
    model: Path,
    flags: tuple[str, ...],
    log: Path,
    progress: Callable[[float], None],
    start_seconds: float = START_SECONDS,
) -> Iterator[Server]:
    """A server that answers, until the block ends.

    Args:
        model: the model's folder.
        flags: of ``layered_sglang.launch_server``, beside the model and the port.
        log: file for the server's output.
        progress: called with the seconds since the start, a few times a second, until it answers.
        start_seconds: how long it may take until then.

    Raises:
        ServerFailed: it ended or took longer than that.
    """
    port = _free_port()
    command = [sys.executable, "-m", "layered_sglang.launch_server", "--model-path", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    # Threads of several processes that spin for one another's cores cost more than they give.
    defaults = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**defaults, **os.environ},
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_ready(server, progress, start_seconds)
        yield server
    finally:
        _stop(process)


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
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
