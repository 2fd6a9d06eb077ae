"""``--dp``: replicas behind SGLang's own balancer, each with a schedule of its own."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from half_way import LONG, SHORT, STREAM
from harness import answer_of, difference, free_port, layered_command, running
from timed import TRIES

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

ASKED = [STREAM, LONG[0], SHORT]


def test_each_replica_layers_its_own_prompts(make_model, ask_stock, tmp_path):
    wanted = [answer for (answer,) in ask_stock(ASKED)]
    trace = tmp_path / "trace.jsonl"
    flags = ("--dp", "2", "--num-layer-groups", "8", "--layered-max-prefill-tokens", "1000")
    command = layered_command(make_model(), free_port(), *flags, "--layered-trace-file", str(trace))
    with running(command, tmp_path / "server.log") as server:

        async def ask(session, request, replica):
            body = request.body(None) | {"stream": False, "routed_dp_rank": replica}
            async with session.post(server.url + "/generate", json=body) as response:
                assert response.status == 200, await response.text()
                return answer_of(await response.json())

        async def stream(session, replica, begun):
            body = STREAM.body(None) | {"routed_dp_rank": replica}
            async with session.post(server.url + "/generate", json=body) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        last = json.loads(line[6:])
                        begun.set()
                return answer_of(last)

        async def ask_replica(session, replica):
            begun = asyncio.Event()
            first = asyncio.create_task(stream(session, replica, begun))
            await begun.wait()
            others = asyncio.gather(*(ask(session, request, replica) for request in ASKED[1:]))
            return [await first, *await others]

        async def ask_both():
            timeout = aiohttp.ClientTimeout(total=300)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                return await asyncio.gather(*(ask_replica(session, i) for i in range(2)))

        def merged(path):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            return sum(line["kind"] == "merged" for line in lines)

        for _ in range(TRIES):
            both = asyncio.run(ask_both())
            server.wait_idle()
            for answers in both:
                for got, want in zip(answers, wanted, strict=True):
                    assert difference(got, want) is None
            if min(merged(trace), merged(tmp_path / "trace.jsonl.dp1")) >= 8:
                break
        else:
            pytest.fail("a replica layered nothing")
    assert server.log.read_text().count("layered prefill is on") == 2
