"""The KV pool fills while a long prompt is between two of its chunks: running requests grow meanwhile."""

from __future__ import annotations

import asyncio
import functools

import aiohttp
import pytest
from half_way import IGNORE_EOS, check, prompt, settled
from harness import Request, free_port, generate, layered_command, running

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

POOL, CHUNK = 1700, 400
GROWING = [Request(prompt(20), 250, IGNORE_EOS, stream=True) for _ in range(8)]
#: Slots that are left when the prompt is admitted. Each of its chunks takes eight iterations, in which
#: eight requests take a slot each.
LEFT = 60


async def beside_growing(server) -> dict:
    """Answers by request; the prompt comes while the others are held, so that what is free is known."""
    lengths = dict.fromkeys(GROWING, 0)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:

        async def post(path, **body):
            async with session.post(server.url + path, json=body) as response:
                assert response.status == 200

        def grow(request):
            told = functools.partial(lengths.__setitem__, request)
            return asyncio.create_task(generate(session, server, request, progress=told))

        growing = [grow(request) for request in GROWING]
        while not all(lengths.values()):
            await asyncio.sleep(0.01)
        await post("/pause_generation", mode="in_place")
        await asyncio.sleep(1.0)  # what was on its way has come
        held = sum(len(request.prompt) + length for request, length in lengths.items())
        long = Request(prompt(POOL - held - LEFT), 4, IGNORE_EOS)
        last = asyncio.create_task(generate(session, server, long))
        await asyncio.sleep(1.0)
        await post("/continue_generation")
        answers = await asyncio.gather(*growing, last)
        return {r: a for r, (a,) in zip([*GROWING, long], answers, strict=True)}


def test_the_next_chunk_finds_no_room(make_model, ask_stock, tmp_path):
    """It would not be SGLang that notices: it allocates the chunk, and ends."""
    flags = ["--max-total-tokens", str(POOL), "--layered-max-prefill-tokens", str(CHUNK)]
    flags += ["--schedule-conservativeness", "0.01", "--itl-slo-ms", "2", "--enable-metrics"]
    command = layered_command(make_model(), free_port(), *flags)
    with running(command, tmp_path / "server.log") as server:
        answers = asyncio.run(beside_growing(server))
        settled(server)
    asked = list(answers)
    check(answers, {r: a for r, (a,) in zip(asked, ask_stock(asked), strict=True)})
