"""SGLang's features of one request, in a prompt that is layered beside a running stream: the answer is
what stock SGLang's server gives to that request alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from bodies import ask, begin_with, beside_a_stream, body, expect_same, tokens
from harness import Server, free_port, layered_command, running, stock_command
from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor
from timed import TRIES

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

SHARED = (
    *("--enable-custom-logit-processor", "--enable-return-hidden-states"),
    "--enable-streaming-session",
)
#: One layer an iteration, and on both prompts of more than 1000 tokens in chunks: SGLang returns the
#: hidden states of a prompt's last chunk.
LAYERED = ("--num-layer-groups", "8", "--layered-max-prefill-tokens", "1000")
STOCK = ("--chunked-prefill-size", "1000")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"enum": ["small", "large"]},
        "count": {"type": "integer"},
    },
    "required": ["name", "size", "count"],
    "additionalProperties": False,
}
NEVER = list(range(32, 96))  # among the likeliest tokens

begin_with(3)  # prompts whose answers end as the features want

FEATURES: dict[str, dict[str, Any]] = {
    "json schema": body(new=60, eos=True, sampling={"json_schema": json.dumps(SCHEMA)}),
    "json schema in chunks": body(
        2300, new=60, eos=True, sampling={"json_schema": json.dumps(SCHEMA)}
    ),
    "regex": body(new=40, eos=True, sampling={"regex": "(cat|dog)( and (cat|dog)){2,4}"}),
    "ebnf": body(new=40, eos=True, sampling={"ebnf": 'root ::= "yes " | "no " [a-f]{8}'}),
    "logprobs": body(logprob_start_len=0, top_logprobs_num=3, token_ids_logprob=[65, 66, 97]),
    "logprobs in chunks": body(
        2300, logprob_start_len=500, top_logprobs_num=2, token_ids_logprob=[65]
    ),
    "scoring": body(new=0, logprob_start_len=0, token_ids_logprob=[48, 49], top_logprobs_num=2),
    "logit bias": body(sampling={"logit_bias": {"97": 3.0, "98": 2.5, "99": -100.0}}),
    "min p, top k": body(sampling={"temperature": 1.0, "top_k": 1, "min_p": 0.1}),
    "stop strings": body(new=60, sampling={"stop": ["e", "a"]}),
    "custom logit processor": body(
        custom_logit_processor=DisallowedTokensLogitsProcessor.to_str(),
        sampling={"custom_params": {"token_ids": NEVER}},
    ),
    "hidden states": body(300, new=6, return_hidden_states=True),
    "hidden states in chunks": body(1700, new=4, return_hidden_states=True),
    "last hidden state": body(300, new=6, return_hidden_states="last"),
    "cache salt": body(extra_key="tenant"),
}


async def ask_alone(server: Server, asked: dict[str, Any], rid: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session:
        return await ask(session, server, asked, rid=rid)


SESSIONS = {"session": False, "streaming session": True}
TURNS = [tokens(700), tokens(500), tokens(900)]


def name_of(asked: str, attempt: int) -> str:
    """A request's or a session's name, which is its own."""
    return f"{asked.replace(' ', '-')}-{attempt}"


async def turns(
    server: Server, kind: str, asking: Callable[..., Awaitable[dict[str, Any]]], attempt: int = 0
) -> list[dict[str, Any]]:
    """The answers of a conversation, each turn sent as what it adds to the turns before.

    Their names are the session's with ``-0``, ``-1``, …
    """
    identifier = name_of(kind, attempt)
    opened = {"capacity_of_str_len": 8000, "session_id": identifier, "streaming": SESSIONS[kind]}
    answers: list[dict[str, Any]] = []
    previous = None
    async with aiohttp.ClientSession() as session:
        async with session.post(server.url + "/open_session", json=opened) as response:
            assert response.status == 200
        for number, added in enumerate(TURNS):
            rid = f"{identifier}-{number}"
            asked = body() | {
                "input_ids": added,
                "session_params": {"id": identifier, "rid": previous},
            }
            answers.append(await asking(server, asked, rid))
            previous = rid
        closed = {"session_id": identifier}
        async with session.post(server.url + "/close_session", json=closed) as response:
            assert response.status == 200
    return answers


@pytest.fixture(scope="module")
def wanted(make_model, tmp_path_factory) -> dict[str, Any]:
    """Stock SGLang's answers by feature, and by kind of session a list of them."""
    log = tmp_path_factory.mktemp("stock") / "server.log"
    with running(stock_command(make_model(), free_port(), *SHARED, *STOCK), log) as server:

        async def all_alone() -> dict[str, Any]:
            async with aiohttp.ClientSession() as session:
                return {name: await ask(session, server, asked) for name, asked in FEATURES.items()}

        answers = asyncio.run(all_alone())
        for kind in SESSIONS:
            answers[kind] = asyncio.run(turns(server, kind, ask_alone))
        return answers


@pytest.fixture(scope="module")
def layered(make_model, tmp_path_factory):
    """A server, and a function that counts the layer groups of a request."""
    folder = tmp_path_factory.mktemp("layered")
    trace = folder / "trace.jsonl"
    flags = (*SHARED, *LAYERED, "--layered-trace-file", str(trace))
    with running(layered_command(make_model(), free_port(), *flags), folder / "log") as server:

        def layer_groups(rid: str) -> int:
            lines = [json.loads(line) for line in trace.read_text().splitlines()]
            merged = [line for line in lines if line["kind"] == "merged"]
            return sum(any(row[0] == rid for row in line["cohort"]) for line in merged)

        yield server, layer_groups


@pytest.mark.parametrize("feature", FEATURES)
def test_a_layered_prompt_gets_stock_sglangs_answer(feature, layered, wanted):
    server, layer_groups = layered
    for attempt in range(TRIES):
        rid = name_of(feature, attempt)
        answer = asyncio.run(beside_a_stream(server, FEATURES[feature], rid))
        expect_same(answer, wanted[feature])
        server.wait_idle()
        if layer_groups(rid) >= 8:
            return
    pytest.fail("its prompt was never layered")


@pytest.mark.parametrize("kind", SESSIONS)
def test_layered_turns_of_a_session(kind, layered, wanted):
    server, layer_groups = layered
    for attempt in range(TRIES):
        answers = asyncio.run(turns(server, kind, beside_a_stream, attempt))
        for answer, want in zip(answers, wanted[kind], strict=True):
            expect_same(answer, want)
        assert answers[-1]["meta_info"]["prompt_tokens"] > sum(map(len, TURNS))
        server.wait_idle()
        names = [f"{name_of(kind, attempt)}-{number}" for number in range(len(TURNS))]
        if all(layer_groups(name) >= 8 for name in names):
            return
    pytest.fail("a turn was not layered in any attempt")


def test_the_features_are_not_idle(wanted):
    """What they ask for shows in stock's answers."""
    parsed = json.loads(wanted["json schema"]["text"])
    assert parsed.keys() == {"name", "size", "count"}
    assert wanted["stop strings"]["meta_info"]["finish_reason"]["type"] == "stop"
    assert not set(wanted["custom logit processor"]["output_ids"]) & set(NEVER)
    hidden = wanted["hidden states"]["meta_info"]["hidden_states"]
    assert len(hidden) == 6 and len(hidden[0]) == 300
