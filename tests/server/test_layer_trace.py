"""What the layers themselves saw: each prompt token once per layer, decode in every iteration."""

from __future__ import annotations

import collections
import json
import os
import random
from pathlib import Path

import pytest
from harness import Request, free_port, layered_command, running
from timed import TRIES, run

pytestmark = pytest.mark.server
LAYERS = 8
PROBE = Path(__file__).parent / "layer_probe"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "sync"])
def test_each_prompt_token_passes_each_layer_once(make_model, tmp_path, overlap):
    rng = random.Random(1)
    trace, iterations = tmp_path / "probe.jsonl", tmp_path / "iterations.jsonl"
    lengths = [(40, 120), (900, 8), (333, 30), (1500, 4), (7, 20), (1200, 3)]
    prompts: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, int] = {}
    flags = ["--layered-max-prefill-tokens", "1000", "--layer-group-tokens", "150"]
    flags += ["--layered-trace-file", str(iterations)]
    flags += ["--disable-radix-cache", *([] if overlap else ["--disable-overlap-schedule"])]
    env = {
        "LAYER_PROBE_FILE": str(trace),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROBE), os.environ.get("PYTHONPATH")])),
    }

    def drive(server, attempt):
        """The first is a stream; the others come one after another while it decodes."""
        requests = {}
        for i, (tokens, new) in enumerate(lengths):
            rid = f"p{attempt}.{i}"
            prompts[rid], outputs[rid] = tuple(rng.randrange(256) for _ in range(tokens)), new
            requests[rid] = Request(prompts[rid], new, (("ignore_eos", True),), stream=i == 0)
        (rid, first), *others = requests.items()
        arrivals = [(4 + 20 * i, request, name) for i, (name, request) in enumerate(others)]
        answers, _ = run(server, first, *arrivals, rid=rid)
        assert all(len(answer.tokens) == r.max_new_tokens for r, answer in answers.items())

    def layered_in_parts(record):
        return record["cohort"] and record["mode"] == "decode" and not record["last"]

    command = layered_command(make_model(), free_port(), *flags)
    with running(command, tmp_path / "server.log", env) as server:
        for attempt in range(TRIES):
            drive(server, attempt)
            server.wait_idle()
            records = [json.loads(line) for line in trace.read_text().splitlines()]
            if sum(map(bool, map(layered_in_parts, records))) > 10:
                break
        else:
            pytest.fail("the traffic hardly layered anything")
    expect_contexts([json.loads(line) for line in iterations.read_text().splitlines()], prompts)
    records = [json.loads(line) for line in trace.read_text().splitlines()]

    seen: collections.Counter = collections.Counter()
    for record in records:
        for owners, position, layer in record["triples"]:
            assert len(owners) == 1, f"a row that belongs to {owners}"
            seen[owners[0], position, layer] += 1
        if record["cohort"] and record["mode"] == "decode":
            expect_decode_beside_cohort(record)
    for rid, prompt in prompts.items():
        # The last output token is never fed back, so its position passes no layer. With overlap on,
        # one decode step more may be launched before the finish is known.
        for position in range(len(prompt) + outputs[rid] - 1):
            for layer in range(LAYERS):
                assert seen[rid, position, layer] == 1, (rid, position, layer)
        extra = {p for r, p, _ in seen if r == rid and p >= len(prompt) + outputs[rid] - 1}
        assert len(extra) <= (1 if overlap else 0)


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
