#!/usr/bin/env python3
"""How late an event loop gets to its work while it answers ``/metrics``, for each way to do that.

    python benchmarks/serving/scrape_lateness.py DIR [--scrapes N]

DIR holds the ``*.db`` files of a server that ran with ``--enable-metrics`` and
``PROMETHEUS_MULTIPROC_DIR=DIR``. The loop has work every millisecond: four short messages through a
socket. Of each scrape the latest piece of work counts. ``loop``: on the event loop, as SGLang does it;
``thread``: on a thread of that process; ``process``: as ``layered_sglang.telemetry.metrics_page`` does;
``none``: nobody scrapes. On a machine with other work run it with a real-time priority (``chrt -r 1``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import uvloop
from layered_sglang.telemetry.metrics_page import MetricsPage, answer_of

PERIOD = 1e-3  # s
MESSAGES, BYTES = 4, 200
SCOPE = {
    "type": "http",
    "query_string": b"",
    "headers": [(b"accept", b"text/plain"), (b"accept-encoding", b"gzip")],
}
Scrape = Callable[[], Awaitable[Any]]


def ways(page: MetricsPage) -> dict[str, Scrape]:
    from prometheus_client import CollectorRegistry, make_asgi_app, multiprocess

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    app = make_asgi_app(registry=registry)

    def in_this_thread() -> Any:
        return asyncio.run(answer_of(app, SCOPE))

    return {
        "none": lambda: asyncio.sleep(0.015),
        "loop": lambda: answer_of(app, SCOPE),
        "thread": lambda: asyncio.to_thread(in_this_thread),
        "process": lambda: answer_of(page, SCOPE),
    }


async def latest_work(scrape: Scrape, scrapes: int) -> tuple[np.ndarray, np.ndarray]:
    """Beside each scrape the latest piece of work, and how long the scrape took; seconds."""
    sender, receiver = socket.socketpair()
    sender.setblocking(False)
    receiver.setblocking(False)
    loop, done = asyncio.get_running_loop(), []

    async def work() -> None:
        due = time.perf_counter()
        while True:
            due += PERIOD
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            for _ in range(MESSAGES):
                await loop.sock_sendall(sender, bytes(BYTES))
                await loop.sock_recv(receiver, BYTES)
            now = time.perf_counter()
            done.append((now, now - due))
            due = max(due, now - PERIOD)  # what was late once does not make all later work late

    working = asyncio.create_task(work())
    await scrape()
    late, took = [], []
    for _ in range(scrapes):
        await asyncio.sleep(0.05)
        start = time.perf_counter()
        await scrape()
        took.append(time.perf_counter() - start)
        await asyncio.sleep(0.02)
        late.append(max(lateness for at, lateness in done if at >= start))
        done.clear()
    working.cancel()
    sender.close()
    receiver.close()
    return np.array(late), np.array(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", metavar="DIR")
    parser.add_argument("--scrapes", type=int, default=200, help="each way (default: 200)")
    args = parser.parse_args()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = args.files
    uvloop.install()
    page = MetricsPage()
    page.start()
    print("| way | latest work beside a scrape: median, P99, max, ms | a scrape: median, max, ms |")
    print("| --- | --- | --- |")
    for name, scrape in ways(page).items():
        late, took = (1e3 * a for a in asyncio.run(latest_work(scrape, args.scrapes)))
        print(
            f"| {name} | {np.median(late):.1f}, {np.quantile(late, 0.99):.1f}, {late.max():.1f} "
            f"| {np.median(took):.1f}, {took.max():.1f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
