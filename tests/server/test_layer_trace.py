"""What the layers themselves saw: each prompt token once per layer, decode in every iteration."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
from pathlib import Path

import aiohttp
import pytest
from harness import Request, free_port, generate, layered_command, running

pytestmark = pytest.mark.server
LAYERS = 8
PROBE = Path(__file__).parent / "layer_probe"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "sync"])
def test_each_prompt_token_passes_each_layer_once(make_model, tmp_path, overlap):
    rng = random.Random(1)
    trace, iterations = tmp_path / "probe.jsonl", tmp_path / "iterations.jsonl"
    prompts = {
        f"p{i}": tuple(rng.randrange(256) for _ in range(n))
        for i, n in enumerate([40, 900, 333, 1500, 7, 1200])
    }
    outputs = {"p0": 120, "p1": 8, "p2": 30, "p3": 4, "p4": 20, "p5": 3}
    flags = ["--layered-max-prefill-tokens", "1000", "--layer-group-tokens", "150"]
    flags += ["--layered-trace-file", str(iterations)]
    flags += ["--disable-radix-cache", *([] if overlap else ["--disable-overlap-schedule"])]
    env = {
        "LAYER_PROBE_FILE": str(trace),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROBE), os.environ.get("PYTHONPATH")])),
    }

    async def drive(server):
        async with aiohttp.ClientSession() as session:

            async def one(i, rid):
                await asyncio.sleep(0.25 * i)
                request = Request(prompts[rid], outputs[rid], (("ignore_eos", True),))
                (answer,) = await generate(session, server, request, rid)
                assert len(answer.tokens) == outputs[rid]

            await asyncio.gather(*(one(i, rid) for i, rid in enumerate(prompts)))

    command = layered_command(make_model(), free_port(), *flags)
    with running(command, tmp_path / "server.log", env) as server:
        asyncio.run(drive(server))
        server.wait_idle()
    expect_contexts([json.loads(line) for line in iterations.read_text().splitlines()], prompts)
    records = [json.loads(line) for line in trace.read_text().splitlines()]

    seen: collections.Counter = collections.Counter()
    partial = 0
    for record in records:
        for owners, position, layer in record["triples"]:
            assert len(owners) == 1, f"a row that belongs to {owners}"
            seen[owners[0], position, layer] += 1
        if record["cohort"] and record["mode"] == "decode":
            expect_decode_beside_cohort(record)
            partial += not record["last"]
    for rid, prompt in prompts.items():
        # The last output token is never fed back, so its position passes no layer. With overlap on,
        # one decode step more may be launched before the finish is known.
        for position in range(len(prompt) + outputs[rid] - 1):
            for layer in range(LAYERS):
                assert seen[rid, position, layer] == 1, (rid, position, layer)
        extra = {p for r, p, _ in seen if r == rid and p >= len(prompt) + outputs[rid] - 1}
        assert len(extra) <= (1 if overlap else 0)
    assert partial > 10, "the traffic hardly layered anything"


def expect_decode_beside_cohort(record):
    """All running requests decode through all layers; the cohort samples after its last group only."""
    assert set(record["running"]) <= set(record["batch"]), "a running request did not decode"
    per_request = collections.Counter()
    for (rid,), _position, _layer in record["triples"]:
        per_request[rid] += 1
    for rid in record["batch"]:
        assert per_request[rid] == LAYERS
    assert record["sampled"] == len(record["batch"])
    assert record["cohort_sampled"] == (len(record["cohort"]) if record["last"] else 0)
    layers = {layer for (rid,), _p, layer in record["triples"] if rid in record["cohort"]}
    assert layers == set(range(min(layers), max(layers) + 1))


def expect_contexts(iterations, prompts):
    """A request's decode step attends to its prompt, to the tokens before and to its own."""
    steps: collections.Counter = collections.Counter()
    for line in iterations:
        if not prompts.keys() >= set(line["decode"]):
            continue  # SGLang's own request at start-up
        steps.update(line["decode"])
        context = sum(len(prompts[rid]) + steps[rid] for rid in line["decode"])
        assert line["decode_context"] == context, line
    assert sum(steps.values()) > 100
