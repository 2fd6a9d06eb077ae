"""Sends a run's requests at their arrival times, whatever the server makes of them (an open loop)."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from layered_sglang.bench.running.client import Endpoint, Prepared, Row, open_session, prepare, send
from layered_sglang.bench.spec.workload import Request

POLL_SECONDS = 0.2


@asynccontextmanager
async def _no_garbage_collection() -> AsyncIterator[None]:
    """Python's collector would stop this process for as long as an iteration of the server takes, or
    longer, and the requests' times would be its own."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass
class Progress:
    """How far a run is."""

    sent: int = 0
    done: int = 0
    failed: int = 0
    seconds: float = 0.0


async def drive(
    endpoint: Endpoint,
    requests: Sequence[Request],
    rows: Sequence[Row],
    request_seconds: float,
    report: Callable[[Progress], None],
    finished: Callable[[Row], None],
    check: Callable[[], None],
    fields: Mapping[str, Any] | None = None,
) -> float:
    """Send ``requests`` and wait for all answers.

    Args:
        rows: of the requests, to be filled in.
        request_seconds: after which an answer counts as failed.
        report: called a few times a second; what it raises ends the run.
        finished: called with each row when its answer is complete or has failed.
        check: called a few times a second; what it raises ends the run.
        fields: more fields of every request.

    Returns:
        Seconds from the start to the last answer.
    """
    progress = Progress()
    prepared = [
        prepare(endpoint, r, row.rid, fields) for r, row in zip(requests, rows, strict=True)
    ]

    async def one(request: Prepared, row: Row) -> None:
        await asyncio.sleep(max(0.0, start + row.arrival - time.perf_counter()))
        progress.sent += 1
        await send(session, request, row, start)
        progress.done += 1
        progress.failed += bool(row.error)
        finished(row)

    async with _no_garbage_collection(), open_session(request_seconds) as session:
        start = time.perf_counter()
        tasks = [
            asyncio.create_task(one(request, row))
            for request, row in zip(prepared, rows, strict=True)
        ]
        waiting = set(tasks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=POLL_SECONDS)
                for task in done:
                    task.result()
                progress.seconds = time.perf_counter() - start
                report(progress)
                check()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return time.perf_counter() - start
