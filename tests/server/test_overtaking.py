"""Policy slo on a real server: short prompts pass long ones, and nobody's answer changes."""

from __future__ import annotations

import asyncio
import json
import random

import aiohttp
import pytest
from harness import (
    Request,
    difference,
    free_port,
    generate,
    generate_all,
    layered_command,
    running,
    stock_command,
)

pytestmark = pytest.mark.server

RNG = random.Random(11)


def prompt(tokens: int) -> tuple[int, ...]:
    return tuple(RNG.randrange(256) for _ in range(tokens))


IGNORE_EOS = (("ignore_eos", True),)
RUNNING = Request(prompt(20), 400, IGNORE_EOS, stream=True)
LONG = Request(prompt(2800), 8, IGNORE_EOS, stream=True)
SHORT = [Request(prompt(n), 6, IGNORE_EOS, stream=True) for n in (12, 30, 25)]


@pytest.fixture(scope="module")
def references(make_model, tmp_path_factory):
    log = tmp_path_factory.mktemp("stock") / "server.log"
    with running(stock_command(make_model(), free_port()), log) as server:
        return asyncio.run(generate_all(server, [RUNNING, LONG, *SHORT], at_once=1))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", [4096, 1024], ids=["whole", "chunked"])
def test_short_prompts_pass_a_long_one_and_answers_are_stock_sglangs(
    make_model, tmp_path, references, chunk
):
    trace = tmp_path / "trace.jsonl"
    flags = ("--itl-slo-ms", "4", "--layered-max-prefill-tokens", str(chunk), "--enable-metrics")
    command = layered_command(make_model(), free_port(), *flags, "--layered-trace-file", str(trace))
    started = asyncio.Event()

    async def drive(server):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:

            def send(request, rid, progress=None):
                return asyncio.create_task(generate(session, server, request, rid, progress))

            tasks = [send(RUNNING, "running", lambda _: started.set())]
            await started.wait()
            tasks.append(send(LONG, "long"))
            while '"long"' not in trace.read_text():  # its first layer group has run
                await asyncio.sleep(0.005)
            tasks += [send(request, f"short{i}") for i, request in enumerate(SHORT)]
            return await asyncio.gather(*tasks)

    with running(command, tmp_path / "server.log") as server:
        answers = asyncio.run(drive(server))
        server.wait_idle()
        counters = server.counters()
    for (answer,), (want,) in zip(answers, references, strict=True):
        assert difference(answer, want) is None
    assert counters["overtaking_cohorts"] >= 1
    first = {}
    for number, line in enumerate(map(json.loads, trace.read_text().splitlines())):
        for rid in line["samples"]:
            first.setdefault(rid, number)
    # Not all: what overtakes may delay the long one by a share of its own time only.
    assert min(first[f"short{i}"] for i in range(len(SHORT))) < first["long"], first


@pytest.mark.timeout(600)
def test_a_request_sets_its_own_target_and_a_bad_one_is_its_senders_error(make_model, tmp_path):
    trace = tmp_path / "trace.jsonl"
    flags = ("--itl-slo-ms", "60000", "--layered-trace-file", str(trace))

    def layer_groups(server, name, target):
        """How many layer groups a prompt of 600 tokens takes beside a request with this target."""
        params = (*IGNORE_EOS, ("custom_params", {"itl_slo_ms": target} if target else None))
        started = asyncio.Event()

        async def drive():
            async with aiohttp.ClientSession() as session:
                decoding = Request(prompt(10), 150, params, stream=True)
                task = asyncio.create_task(
                    generate(session, server, decoding, f"{name}-d", lambda _: started.set())
                )
                await started.wait()
                await generate(session, server, Request(prompt(600), 1), name)
                await task

        asyncio.run(drive())
        server.wait_idle()
        lines = map(json.loads, trace.read_text().splitlines())
        return sum(any(rid == name for rid, _, _ in line["cohort"]) for line in lines)

    with running(layered_command(make_model(), free_port(), *flags), tmp_path / "log") as server:
        assert layer_groups(server, "lenient", None) == 1
        assert layer_groups(server, "strict", 1) == 8  # no layer fits into 1 ms: one at a time
        body = Request((1, 2, 3), 4, (("custom_params", {"itl_slo_ms": "soon"}),)).body(None)
        reply = server.post("/generate", **body)
        assert reply.status_code == 400
        assert "custom_params.itl_slo_ms must be a positive number" in reply.text
        assert server.post("/generate", **Request((1, 2, 3), 4).body(None)).status_code == 200


@pytest.mark.timeout(600)
def test_the_trace_tells_what_was_predicted_and_what_it_took(make_model, tmp_path):
    trace = tmp_path / "trace.jsonl"
    command = layered_command(make_model(), free_port(), "--layered-trace-file", str(trace))
    with running(command, tmp_path / "log") as server:
        requests = [Request(prompt(n), 40, IGNORE_EOS) for n in (30, 700, 50, 900)]
        asyncio.run(generate_all(server, requests, at_once=2))
        server.wait_idle()
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == sorted({line["iteration"] for line in lines})
    assert all(line["seconds"] > 0 for line in lines)
    planned = [line for line in lines if line["kind"] in ("decode", "merged")]
    assert {line["kind"] for line in planned} == {"decode", "merged"}
    assert all(line["predicted"] > 0 and line["decode_context"] > 0 for line in planned)
    # The factors start from data sheets and have learnt by the end.
    late = [abs(line["seconds"] / line["predicted"] - 1) for line in planned[-30:]]
    early = [abs(line["seconds"] / line["predicted"] - 1) for line in planned[:10]]
    assert sorted(late)[15] < sorted(early)[5] or sorted(late)[15] < 0.5
