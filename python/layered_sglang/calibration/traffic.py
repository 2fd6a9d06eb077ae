"""The traffic of a calibration: decode batches by context, and prompts of all sizes beside them."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp

from layered_sglang.calibration.errors import CalibrationError

#: Output tokens of a stream of the decode batch. SGLang keeps KV slots for them; where they do not last
#: for all prompts, the batch shrinks, and the trace says by how much.
STREAM_TOKENS = 1024
#: Decode iterations that are measured with no prompt beside them.
PLAIN_ITERATIONS = 40
#: A batch that does not decode within this time never will.
PATIENCE = 300.0


@dataclass(frozen=True)
class Grid:
    """What is measured: every decode batch × context that fits, each beside every prompt and target.

    Attributes:
        batches: running requests.
        contexts: prompt tokens of each.
        prompts: tokens of the prompts that come.
        targets: inter-token targets in decode iterations (they set the layers of an iteration);
            ``None``: without a target.
    """

    batches: tuple[int, ...] = (1, 4, 16, 48, 128)
    contexts: tuple[int, ...] = (256, 2048, 8192)
    prompts: tuple[int, ...] = (32, 128, 512, 1024, 2048, 4096, 8192)
    targets: tuple[float | None, ...] = (1.3, 3.0, None)

    def cells(self, limits: Limits) -> list[tuple[int, int]]:
        """(batch, context) pairs that the server has room for."""
        longest = max(self.fitting_prompts(limits), default=0)
        room = limits.kv_tokens - longest - 2 * STREAM_TOKENS
        cells = [
            (batch, context)
            for batch in self.batches
            for context in self.contexts
            if batch < limits.max_running
            and batch * (context + STREAM_TOKENS) <= room
            and context + STREAM_TOKENS <= limits.context_length
        ]
        if not cells:
            raise CalibrationError(
                f"the server's {limits.kv_tokens} KV slots hold none of the decode batches; "
                "give it more with --mem-fraction-static or --max-total-tokens"
            )
        return cells

    def fitting_prompts(self, limits: Limits) -> list[int]:
        most = min(limits.max_prefill_tokens, limits.context_length - 8, limits.kv_tokens // 2)
        return [tokens for tokens in self.prompts if tokens <= most]


QUICK = Grid((1, 16, 64), (256, 4096), (64, 512, 2048, 8192), (2.0, None))


@dataclass(frozen=True)
class Limits:
    """What the server holds; tokens."""

    kv_tokens: int
    max_running: int
    max_prefill_tokens: int
    context_length: int
    vocab_size: int


class Driver:
    """Sends the traffic of a grid to a server."""

    def __init__(self, url: str, limits: Limits, check_alive: Callable[[], None]) -> None:
        self._url, self._limits, self._check_alive = url, limits, check_alive
        self._rng = random.Random(0)

    def run(self, grid: Grid, progress: Callable[[int, int], None]) -> None:
        """The whole grid; ``progress`` is told (done, all) prompts."""
        asyncio.run(self._run(grid, progress))

    def warm_up(self, grid: Grid) -> None:
        """Every prompt once, so that nothing is compiled while it is measured."""
        small = Grid(grid.batches[:1], grid.contexts[:1], grid.prompts, (None,))
        asyncio.run(self._run(small, lambda done, total: None))

    async def _run(self, grid: Grid, progress: Callable[[int, int], None]) -> None:
        cells, prompts = grid.cells(self._limits), grid.fitting_prompts(self._limits)
        total, done = len(cells) * len(grid.targets) * len(prompts), 0
        async with _session() as session:
            # Prompts with nobody decoding, too.
            for tokens in prompts:
                await self._prompt(session, tokens)
            for batch, context in cells:
                async with self._decoding(session, batch, context) as stream:
                    itl = await stream.measure_itl()
                    for factor in grid.targets:
                        target = None if factor is None else 1e3 * factor * itl
                        async with self._pacer(session, target):
                            for tokens in prompts:
                                self._check_alive()
                                await self._prompt(session, tokens)
                                done += 1
                                progress(done, total)

    @asynccontextmanager
    async def _decoding(self, session: aiohttp.ClientSession, batch: int, context: int) -> Any:
        """A batch of streams that all decode; gives the last of them."""
        length = min(STREAM_TOKENS, self._limits.context_length - context - 8)
        streams = [_Stream(session, self._url, self._body(context, length)) for _ in range(batch)]
        try:
            for stream in streams:
                stream.start()
            await asyncio.gather(*(stream.begun() for stream in streams))
            yield streams[-1]
        finally:
            await self._stop(session, streams)

    @asynccontextmanager
    async def _pacer(self, session: aiohttp.ClientSession, target_ms: float | None) -> Any:
        """One more stream, with the target that the planner then keeps."""
        if target_ms is None:
            yield
            return
        body = self._body(16, min(STREAM_TOKENS, self._limits.context_length - 24))
        body["sampling_params"]["custom_params"] = {"itl_slo_ms": target_ms}
        stream = _Stream(session, self._url, body)
        try:
            stream.start()
            await stream.begun()
            yield
        finally:
            await self._stop(session, [stream])

    async def _stop(self, session: aiohttp.ClientSession, streams: list[_Stream]) -> None:
        for stream in streams:
            stream.stop()
        for stream in streams:
            with suppress(aiohttp.ClientError):
                await session.post(f"{self._url}/abort_request", json={"rid": stream.rid})
        await asyncio.gather(*(stream.ended() for stream in streams))

    async def _prompt(self, session: aiohttp.ClientSession, tokens: int) -> None:
        stream = _Stream(session, self._url, self._body(tokens, 1))
        stream.start()
        await stream.begun()
        await stream.ended()

    def _body(self, prompt: int, output: int) -> dict[str, Any]:
        # Random tokens, so that no prompt finds another's prefix in the cache.
        return {
            "input_ids": self._rng.choices(range(10, self._limits.vocab_size), k=prompt),
            "sampling_params": {
                "max_new_tokens": output,
                "ignore_eos": True,
                "temperature": 0.0,
            },
            "stream": True,
            "rid": uuid.uuid4().hex,
        }


class _Stream:
    """A streamed request; every piece is a moment."""

    def __init__(self, session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
        self.rid = body["rid"]
        self._session, self._url, self._body = session, url, body
        self._times: list[float] = []
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self._session.post(f"{self._url}/generate", json=self._body) as response:
            if response.status != 200:
                text = " ".join((await response.text()).split())
                raise CalibrationError(f"the server refused a request: {text[:300]}")
            async for line in response.content:
                if line.startswith(b"data:") and not line.startswith(b"data: [DONE]"):
                    event = json.loads(line[5:])
                    if "error" in event:
                        raise CalibrationError(f"a request failed: {event['error']}")
                    self._times.append(time.monotonic())
                    self._more.set()

    async def begun(self) -> None:
        """Until its first token."""
        await self._until(lambda: len(self._times) >= 1)

    async def measure_itl(self) -> float:
        """Seconds between its next tokens, the median."""
        begin = len(self._times)
        await self._until(lambda: len(self._times) > begin + PLAIN_ITERATIONS)
        gaps = [b - a for a, b in pairwise(self._times[begin:])]
        return statistics.median(gaps)

    async def _until(self, condition: Callable[[], bool]) -> None:
        assert self._task is not None
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self._task.done():
                self._task.result()  # raises what ended it
                if condition():
                    return
                raise CalibrationError("a request ended before it was measured")
            if time.monotonic() > deadline:
                raise CalibrationError(f"a request got no token within {PATIENCE:.0f} s")
            self._more.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._more.wait(), 1.0)

    def stop(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def ended(self) -> None:
        if self._task is not None:
            with suppress(asyncio.CancelledError, aiohttp.ClientError):
                await self._task


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_read=PATIENCE),
        connector=aiohttp.TCPConnector(limit=0),
        read_bufsize=2**20,
    )
