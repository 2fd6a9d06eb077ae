"""``/metrics``, rendered by a process of its own.

SGLang mounts ``prometheus_client``'s ASGI application. It reads and adds up the files into which all
processes count, on the event loop that passes tokens on, which stands still for 10 to 35 ms. On a thread
it would still hold the interpreter's lock against that loop. But the files are all that it needs: so it
runs in a process of its own (this module as a command), and the loop passes its answers on.
"""

from __future__ import annotations

import asyncio
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

PATH = "/metrics"
COMMAND = (sys.executable, "-m", "layered_sglang.telemetry.metrics_page")

#: An answer takes 10 to 35 ms. Who asks waits on a thread of a small pool, which others need, too.
PATIENCE = 20.0

#: An ASGI message, and an ASGI application.
Message = dict[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


class MetricsPage:
    """An ASGI application: the answers of :func:`serve`, of which it keeps a process.

    Args:
        command: of the process; it ends with its standard input.
        patience: seconds until a process that does not answer is ended.
    """

    def __init__(self, command: Sequence[str] = COMMAND, patience: float = PATIENCE) -> None:
        self._command = command
        self._patience = patience
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        messages = await asyncio.to_thread(self.ask, scope["query_string"], scope["headers"])
        if (await receive())["type"] == "http.request":
            for message in messages:
                await send(message)

    def start(self) -> None:
        """Start the process, if there is none: the first answer waits for it otherwise."""
        with self._lock:
            self._running()

    def ask(self, query_string: bytes, headers: Sequence[tuple[bytes, bytes]]) -> list[Message]:
        """The ASGI messages of one answer. Blocks; may be called on any thread.

        Raises:
            EOFError, OSError, pickle.UnpicklingError: the process ended twice; it has said why, or was
                ended for its silence.
        """
        scope = {"type": "http", "query_string": query_string, "headers": list(headers)}
        with self._lock:
            try:
                return self._exchange(scope)
            except (EOFError, OSError, pickle.UnpicklingError):
                self._stop()  # it was ended from outside, or by a file that vanished under its hands
                return self._exchange(scope)

    def _exchange(self, scope: Message) -> list[Message]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        enough = threading.Timer(self._patience, process.kill)  # the pipe then ends
        enough.daemon = True
        enough.start()
        try:
            pickle.dump(scope, process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        finally:
            enough.cancel()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError), process:  # closes the pipes; what is left to write goes nowhere
                pass


def add_metrics_page(app: Any) -> MetricsPage:
    """Mount a page before SGLang mounts its own, at the same paths; the first one answers.

    Args:
        app: SGLang's FastAPI application, before it starts.
    """
    from starlette.routing import Mount

    page = MetricsPage()
    route = Mount(PATH, page)
    route.path_regex = re.compile(f"^{PATH}(?P<path>.*)$")  # SGLang's: no redirect to "/metrics/"
    app.router.routes.append(route)
    return page


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer pickled ASGI scopes with pickled lists of messages, until ``requests`` ends."""
    from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    app = make_asgi_app(registry=registry)
    while True:
        try:
            scope = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(asyncio.run(answer_of(app, scope)), answers)
        answers.flush()


async def answer_of(app: App, scope: Message) -> list[Message]:
    """What ``app`` sends to a request without a body."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's, which ends the server: then so do we
    serve(sys.stdin.buffer, sys.stdout.buffer)
