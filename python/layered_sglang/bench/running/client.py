"""One streamed request, timed as its client sees it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp

from layered_sglang.bench.spec.workload import Request


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    Attributes:
        native: SGLang's ``/generate``; otherwise OpenAI's ``/v1/completions``.
        model: the model's name there.
    """

    url: str
    native: bool
    model: str = "default"


@dataclass
class Row:
    """What was measured of one request; a line of rows.jsonl.

    Attributes:
        workload: its name in the scenario.
        arrival: seconds after the run's start at which it was to be sent.
        sent_s: seconds after the run's start at which it was sent.
        ttft_s: seconds from then to the first token, None without one.
        itls_s: seconds from token to token; tokens that come together share their gap, as in
            SGLang's own benchmark.
        e2e_s: seconds to the last token.
        error: empty when the answer is complete.
    """

    system: str
    workload: str
    repeat: int
    rate: float | None
    index: int
    rid: str
    arrival: float
    prompt_tokens: int
    output_tokens: int = 0
    sent_s: float = 0.0
    ttft_s: float | None = None
    itls_s: list[float] = field(default_factory=list)
    e2e_s: float | None = None
    error: str = ""

    def record(self) -> dict[str, Any]:
        """For JSON, with times to the microsecond."""
        record = asdict(self)
        for name in ("arrival", "sent_s", "ttft_s", "e2e_s"):
            if record[name] is not None:
                record[name] = round(record[name], 6)
        record["itls_s"] = [round(gap, 6) for gap in self.itls_s]
        return record


class Clock:
    """Takes down when a request's tokens come."""

    def __init__(self, row: Row, sent: float) -> None:
        self._row = row
        self._sent = self._last = sent

    def tokens(self, count: int) -> None:
        """``count`` tokens more came now."""
        if count < 1:
            return
        now, row = time.perf_counter(), self._row
        if row.ttft_s is None:
            row.ttft_s = now - self._sent
        else:
            row.itls_s += [(now - self._last) / count] * count
        row.output_tokens += count
        row.e2e_s = now - self._sent
        self._last = now


def new_rid() -> str:
    """A request id. NOTE: SGLang takes an rid for the prefix of others, so all are of one length."""
    return uuid.uuid4().hex


def open_session(seconds: float) -> aiohttp.ClientSession:
    """A client for many streams at once; each answer may take ``seconds``."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=seconds),
        read_bufsize=2**20,
    )


@dataclass(frozen=True)
class Prepared:
    """A request as it goes over the wire; made before the run, for it takes milliseconds."""

    url: str
    body: bytes
    native: bool
    output_tokens: int


def prepare(
    endpoint: Endpoint, request: Request, rid: str, fields: Mapping[str, Any] | None = None
) -> Prepared:
    """A request for an endpoint.

    Args:
        rid: the request's id; an endpoint that is not SGLang's does not get it.
        fields: more fields of its body; mappings are put into one another, None leaves a field out.
    """
    path, body = _native(request, rid) if endpoint.native else _openai(request, endpoint.model)
    content = json.dumps(_merged(body, fields or {})).encode()
    return Prepared(endpoint.url + path, content, endpoint.native, request.output_tokens)


async def send(session: aiohttp.ClientSession, prepared: Prepared, row: Row, start: float) -> None:
    """Send a request now and fill in its row; what goes wrong goes into ``row.error``.

    Args:
        start: ``time.perf_counter()`` of the run's start.
    """
    sent = time.perf_counter()
    row.sent_s = sent - start
    clock = Clock(row, sent)
    headers = {"Content-Type": "application/json"}
    try:
        async with session.post(prepared.url, data=prepared.body, headers=headers) as response:
            if response.status != 200:
                row.error = f"HTTP {response.status}: {(await response.text())[:500]}"
                return
            async for line in response.content:
                # Some servers leave out the space.
                data = line[5:].strip() if line.startswith(b"data:") else b""
                if data.startswith(b"{"):
                    _take(json.loads(data), prepared.native, row, clock)
    except asyncio.CancelledError:
        row.error = row.error or "cancelled"
        raise
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
        row.error = row.error or f"{type(error).__name__}: {error}".rstrip(": ")
    if not row.error and row.output_tokens < prepared.output_tokens:
        row.error = f"{row.output_tokens} of {prepared.output_tokens} tokens came"


def _merged(body: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(body)
    for name, value in fields.items():
        if value is None:
            merged.pop(name, None)
            continue
        inner = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        merged[name] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def _native(request: Request, rid: str) -> tuple[str, dict[str, Any]]:
    return "/generate", {
        "rid": rid,
        "input_ids": request.prompt,
        "sampling_params": {
            "temperature": 0.0,
            "max_new_tokens": request.output_tokens,
            "ignore_eos": True,
        },
        "stream": True,
    }


def _openai(request: Request, model: str) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {
        "model": model,
        "prompt": request.prompt,
        "temperature": 0.0,
        "max_tokens": request.output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


def _take(event: dict[str, Any], native: bool, row: Row, clock: Clock) -> None:
    """One event of the stream.

    An OpenAI endpoint that does not tell its count with every event (``continuous_usage_stats``, an
    extension of vLLM's and SGLang's) is taken to send one token an event that has a text; what the
    last event counts beyond them came with it.
    """
    if event.get("error"):
        row.error = str(event["error"])[:500]
        return
    if native:
        meta = event["meta_info"]
        clock.tokens(meta["completion_tokens"] - row.output_tokens)
        finish = meta.get("finish_reason") or {}
        if finish.get("type") == "abort":
            row.error = f"aborted: {finish.get('message', '')}"[:500]
        return
    usage = event.get("usage") or {}
    if "completion_tokens" in usage:
        clock.tokens(usage["completion_tokens"] - row.output_tokens)
    elif event.get("choices") and event["choices"][0].get("text"):
        clock.tokens(1)
