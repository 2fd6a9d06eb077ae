"""Requests that catch a cohort half-way: sent by the tokens of a stream, or when the pool is full."""

from __future__ import annotations

import asyncio
import random

import aiohttp
from harness import Request, answer_of, difference, generate
from timed import run as run

_RNG = random.Random(3)
IGNORE_EOS = (("ignore_eos", True),)


def prompt(n: int) -> tuple[int, ...]:
    return tuple(_RNG.randrange(256) for _ in range(n))


STREAM = Request(prompt(20), 150, IGNORE_EOS, stream=True)
LONG = [Request(prompt(n), 6, IGNORE_EOS, logprob_start=0) for n in (1500, 1400, 2900)]
#: Most of their tokens are prompt: the pool is nearly full after few steps, and they grow on.
GROWING = [Request(prompt(200), 130, IGNORE_EOS) for _ in range(10)]
FILLERS = {n: Request(prompt(n), 1, IGNORE_EOS) for n in range(450, 951, 10)}
SMALL = [Request(prompt(25), 1, IGNORE_EOS) for _ in range(2)]
POOL = 3300
SHORT = Request(prompt(12), 10, IGNORE_EOS)
SCORED = Request(prompt(700), 0, logprob_start=0)  # prompt logprobs only
ALL = [STREAM, *LONG, *GROWING, *FILLERS.values(), *SMALL, SHORT, SCORED]


def check(answers, wanted, tolerance=1e-4):
    for request, answer in answers.items():
        problem = difference(answer, wanted[request], tolerance)
        assert problem is None, f"{len(request.prompt)} tokens: {problem}"


def settled(server):
    server.wait_idle()
    assert server.held_tokens() == 0
    return server.counters()


def fill_the_pool(server, left):
    """Answers by request: three prompts in a cohort fill the pool but for ``left`` to ``left`` + 9 slots.

    Ten answers grow meanwhile, by 10 * 8 slots until the cohort has passed its eight layer groups.
    They are held (paused in place) until the prompts wait, so that what is free is known.
    """

    async def go():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:

            async def post(path, **body):
                async with session.post(server.url + path, json=body) as response:
                    assert response.status == 200
                    return await response.json() if path == "/generate" else None

            async def held():
                async with session.get(server.url + "/v1/loads") as response:
                    return sum(load["num_used_tokens"] for load in (await response.json())["loads"])

            growing = [asyncio.create_task(generate(session, server, r)) for r in GROWING]
            while await held() < POOL - 950:
                await asyncio.sleep(0.02)
            await post("/pause_generation", mode="in_place")
            await asyncio.sleep(0.3)
            small = sum(len(r.prompt) for r in SMALL)
            prompts = [FILLERS[(POOL - await held() - small - left) // 10 * 10], *SMALL]
            # In one request, so that they come together.
            body = SMALL[0].body(None) | {"input_ids": [list(r.prompt) for r in prompts]}
            fillers = asyncio.create_task(post("/generate", **body))
            await asyncio.sleep(1.0)
            await post("/continue_generation")
            answers = [answer for (answer,) in await asyncio.gather(*growing)]
            answers += map(answer_of, await fillers)
            return dict(zip([*GROWING, *prompts], answers, strict=True))

    return asyncio.run(go())
