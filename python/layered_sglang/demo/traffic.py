"""The chat and the long prompts, sent over HTTP and timed as a client sees them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from layered_sglang.demo.scenario import (
    CHAT_LIMIT,
    CHAT_MESSAGES,
    CHAT_TAIL,
    PROMPT_OUTPUT_TOKENS,
    PROMPTS,
    WARM_UP,
    LongPrompt,
    prompt_text,
)

SECONDS = 120


class TrafficError(Exception):
    """The server answered with an error."""


@dataclass
class Chat:
    """The running chat: its text by token, and when each piece came."""

    rid: str
    text_of_token: dict[int, str] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    done: bool = False
    started: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        return "".join(self.text_of_token[n] for n in sorted(self.text_of_token))

    @property
    def gaps(self) -> tuple[float, ...]:
        return tuple(b - a for a, b in zip(self.times, self.times[1:], strict=False))


@dataclass
class PromptRun:
    """A long prompt under way: when it was sent and when its first token came."""

    prompt: LongPrompt
    rid: str
    sent: float | None = None
    first_token: float | None = None
    done: bool = False


@dataclass
class Traffic:
    """All requests of one run.

    NOTE: rids are new in every run. SGLang aborts a streamed request's rid some seconds after its
    end, whoever bears it by then, and takes an rid for the prefix of others.
    """

    url: str
    chat: Chat = field(default_factory=lambda: Chat(uuid.uuid4().hex))
    prompts: list[PromptRun] = field(
        default_factory=lambda: [PromptRun(prompt, uuid.uuid4().hex) for prompt in PROMPTS]
    )

    async def send(self) -> None:
        """Send everything; returns when all is answered."""
        async with _session() as session:
            await asyncio.gather(
                self._stream_chat(session), *(self._send_prompt(session, p) for p in self.prompts)
            )

    async def _stream_chat(self, session: aiohttp.ClientSession) -> None:
        body = {
            "messages": list(CHAT_MESSAGES),
            "max_tokens": CHAT_LIMIT,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "rid": self.chat.rid,
        }
        tail = 0
        url = self.url + "/v1/chat/completions"
        async with aclosing(_stream(session, url, body)) as events:
            async for event in events:
                choices = event.get("choices")
                text = choices[0]["delta"].get("content") if choices else None
                if not text:
                    continue
                # A piece is named by its last token: a character may take several.
                self.chat.text_of_token[event["usage"]["completion_tokens"]] = text
                self.chat.times.append(time.monotonic())
                self.chat.started.set()
                tail += all(run.done for run in self.prompts)
                if tail == CHAT_TAIL:
                    break  # hangs up, and the server aborts the rest
        self.chat.done = True
        if not self.chat.times:
            raise TrafficError("the chat's answer is empty")

    async def _send_prompt(self, session: aiohttp.ClientSession, run: PromptRun) -> None:
        await self.chat.started.wait()
        await asyncio.sleep(run.prompt.arrival - (time.monotonic() - self.chat.times[0]))
        run.sent = time.monotonic()
        async for event in _complete(session, self.url, run.prompt, run.rid):
            if run.first_token is None and event["choices"] and event["choices"][0]["text"]:
                run.first_token = time.monotonic()
        run.done = True
        if run.first_token is None:
            raise TrafficError(f"the answer to prompt {run.prompt.letter} is empty")


async def warm_up(url: str) -> None:
    """Run each kind of request once, so that no first-time work is measured; then wait for rest."""
    traffic = Traffic(url, prompts=[PromptRun(WARM_UP, uuid.uuid4().hex)])
    await traffic.send()
    deadline = time.monotonic() + SECONDS
    async with _session() as session:
        # The server still decodes for the chat that hung up; it refuses to flush before it rests.
        while time.monotonic() < deadline:
            async with session.post(url + "/flush_cache") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.2)
    raise TrafficError("the server does not come to rest after the warm-up")


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS))


def _complete(
    session: aiohttp.ClientSession, url: str, prompt: LongPrompt, rid: str
) -> AsyncGenerator[dict[str, Any], None]:
    body = {"prompt": prompt_text(prompt), "max_tokens": PROMPT_OUTPUT_TOKENS, "rid": rid}
    return _stream(session, url + "/v1/completions", body)


async def _stream(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a streamed answer; greedy, and to the full length."""
    body = {"model": "tiny", "temperature": 0, "ignore_eos": True, "stream": True, **body}
    async with session.post(url, json=body) as response:
        if response.status != 200:
            raise TrafficError(f"{url} answered {response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[len("data: ") :])
                if "error" in event:
                    raise TrafficError(f"{url}: {event['error']}")
                yield event
