"""The iteration trace of SGLang's own schedule, mixed chunks among it."""

from __future__ import annotations

import asyncio
import collections
import json
import random

import aiohttp
import pytest
from harness import Request, free_port, layered_command, running
from timed import TRIES

pytestmark = pytest.mark.server


@pytest.mark.timeout(600)
def test_sglangs_own_schedule_is_traced(make_model, tmp_path):
    rng = random.Random(3)
    trace = tmp_path / "trace.jsonl"
    requests = {
        rid: Request(tuple(rng.randrange(256) for _ in range(n)), out, (("ignore_eos", True),))
        for rid, n, out in (("chat", 40, 80), ("long", 1300, 3))
    }

    async def drive(server, attempt):
        # SGLang does not mix requests that want logprobs.
        bodies = {
            rid: {**r.body(f"{rid}{attempt}"), "return_logprob": False}
            for rid, r in requests.items()
        }
        async with aiohttp.ClientSession() as session:
            chatting = asyncio.Event()

            async def chat():
                body = {**bodies["chat"], "stream": True}
                async with session.post(server.url + "/generate", json=body) as response:
                    assert response.status == 200, await response.text()
                    async for _ in response.content:
                        chatting.set()

            async def long():
                await chatting.wait()
                async with session.post(server.url + "/generate", json=bodies["long"]) as response:
                    assert response.status == 200, await response.text()
                    await response.read()

            await asyncio.gather(chat(), long())

    flags = ["--prefill-schedule", "chunked", "--chunked-prefill-size", "512"]
    flags += ["--enable-mixed-chunk", "--layered-trace-file", str(trace)]
    with running(layered_command(make_model(), free_port(), *flags), tmp_path / "log") as server:
        for attempt in range(TRIES):
            asyncio.run(drive(server, attempt))
            server.wait_idle()
            records = [json.loads(line) for line in trace.read_text().splitlines()]
            if sum(record["kind"] == "mixed" for record in records) >= 3:
                break
        else:
            pytest.fail("hardly anything was mixed")
        assert "layered prefill is on" not in server.log.read_text()

    computed: collections.Counter = collections.Counter()
    sampled: collections.Counter = collections.Counter()
    for record in records:
        assert record["layers"] is None
        sampled.update(record["samples"])
        for rid, start, tokens in record["cohort"]:
            computed.update((rid, start + i) for i in range(tokens))
        if record["kind"] == "mixed":
            (decoding,), ((prompt, _, _),) = record["decode"], record["cohort"]
            assert decoding.startswith("chat") and prompt == decoding.replace("chat", "long")
    for name, request in requests.items():
        for rid in (f"{name}{i}" for i in range(attempt + 1)):
            assert all(computed[rid, i] == 1 for i in range(len(request.prompt)))
            # With overlap on, one decode step more may be launched before the finish is known.
            assert sampled[rid] - request.max_new_tokens in (0, 1)
