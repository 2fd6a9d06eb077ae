"""Requests as SGLang takes them, beside a running stream, and all of what comes back."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import pytest
from harness import Server

_RNG = random.Random(17)


def begin_with(seed: int) -> None:
    """From here on a module's prompts are the same, whichever modules were imported before."""
    _RNG.seed(seed)


def tokens(count: int) -> list[int]:
    return [_RNG.randrange(256) for _ in range(count)]


def body(prompt: int = 600, new: int = 24, eos: bool = False, **changed: Any) -> dict[str, Any]:
    sampling = {"temperature": 0.0, "max_new_tokens": new, "ignore_eos": not eos}
    sampling |= changed.pop("sampling", {})
    return {
        "input_ids": tokens(prompt),
        "sampling_params": sampling,
        "return_logprob": True,
        "logprob_start_len": -1,
        **changed,
    }


STREAM = body(30, new=200)


async def ask(session: aiohttp.ClientSession, server: Server, asked: dict, **more: Any) -> dict:
    async with session.post(server.url + "/generate", json={**asked, **more}) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def beside_a_stream(
    server: Server, asked: dict[str, Any], rid: str, **stream_has: Any
) -> dict[str, Any]:
    """The answer to ``asked``, sent when ``STREAM`` has begun."""
    begun = asyncio.Event()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:

        async def stream() -> None:
            sent = {**STREAM, "stream": True, **stream_has}
            if "token_ids_logprob" in asked:
                # SGLang's decode ends the server when of two requests one asks for these and one not.
                sent["token_ids_logprob"] = [65]
            async with session.post(server.url + "/generate", json=sent) as response:
                async for _ in response.content:
                    begun.set()

        running_one = asyncio.create_task(stream())
        await begun.wait()
        answer = await ask(session, server, asked, rid=rid)
        await running_one
        return answer


#: What an answer says of itself besides time and place.
META = ("finish_reason", "prompt_tokens", "completion_tokens")
LOGPROBS = (
    *("input_token_logprobs", "output_token_logprobs", "input_top_logprobs", "output_top_logprobs"),
    *("input_token_ids_logprobs", "output_token_ids_logprobs", "hidden_states"),
)


def expect_equal(got: Any, want: Any, where: str) -> None:
    """Structures of numbers, equal but for what another order of sums changes."""
    if isinstance(want, list):
        assert isinstance(got, list) and len(got) == len(want), where
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            expect_equal(a, b, f"{where}[{i}]")
    elif isinstance(want, float):
        assert got == pytest.approx(want, abs=2e-4, rel=1e-4), where
    else:
        assert got == want, where


def expect_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.get("output_ids") == want.get("output_ids") and got["text"] == want["text"]
    for name in META:
        assert got["meta_info"][name] == want["meta_info"][name], name
    for name in LOGPROBS:
        assert (name in got["meta_info"]) == (name in want["meta_info"]), name
        expect_equal(got["meta_info"].get(name), want["meta_info"].get(name), name)
