"""A cohort that does not reach its end in one go: aborts, restarts, pauses, bad neighbours."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from half_way import (
    ALL,
    FILLERS,
    IGNORE_EOS,
    LONG,
    POOL,
    SCORED,
    SHORT,
    STREAM,
    abort_beside,
    check,
    fill_the_pool,
    run,
    settled,
)
from harness import Request, free_port, generate, layered_command, running
from timed import TRIES

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


#: Model and schedule of the server. gpt-oss has two KV pools, one for its layers with a window, and
#: Qwen3-Next one of states, which SGLang keeps without overlap where no GPU is.
SERVED = [
    ("tiny", "overlap"),
    ("tiny", "sync"),
    ("tiny-gpt-oss", "overlap"),
    ("tiny-qwen3-next", "sync"),
]


@pytest.fixture(scope="module", params=SERVED, ids="-".join)
def served(request):
    return request.param


@pytest.fixture(scope="module")
def wanted(served, ask_stock):
    """Stock SGLang's answers."""
    answers = ask_stock(ALL, model=served[0])
    return {request: answer for request, (answer,) in zip(ALL, answers, strict=True)}


@pytest.fixture(scope="module")
def server(served, make_model, tmp_path_factory):
    """One layer an iteration, chunks of 1000 tokens, a pool that growing answers outgrow."""
    flags = ["--num-layer-groups", "8", "--layered-max-prefill-tokens", "1000", "--enable-metrics"]
    flags += ["--max-total-tokens", str(POOL), "--schedule-conservativeness", "0.01"]
    flags += ["--load-snapshot-publish-interval", "1"]
    model, schedule = served
    flags += [] if schedule == "overlap" else ["--disable-overlap-schedule"]
    log = tmp_path_factory.mktemp("layered") / "server.log"
    with running(layered_command(make_model(model), free_port(), *flags), log) as s:
        yield s


def test_a_cohort_restarts_when_the_pool_runs_out(server, wanted):
    before = settled(server)["restarted_cohorts"]
    for left in (20, 45, 60):
        check(fill_the_pool(server, left), wanted)
        settled(server)
    assert settled(server)["restarted_cohorts"] > before


def test_requests_retracted_before_their_first_token_came(server, wanted):
    """The pool runs out in the iteration after the last layer group; with overlap on, SGLang has
    not processed that one's result yet, and retracts the requests that it belongs to."""
    settled(server)
    for left in (85, 80, 90):
        before = len(server.log.read_text())
        check(fill_the_pool(server, left), wanted)
        settled(server)
        said = server.log.read_text()[before:]
        # Nobody else holds that many slots. Its only token would have ended it, had it come.
        slots = len(FILLERS[left].prompt)
        if f"#retracted_reqs: 1, #new_tokens_gained: {slots}," in said:
            return
    assert "--disable-overlap-schedule" in server.process.args, f"not retracted: {said}"


@pytest.mark.parametrize("tokens", [0, 1, 4, 8, 13, 22, 45])
def test_abort_at_every_phase_of_a_chunked_prompt(server, wanted, tokens):
    abort_beside(server, wanted, STREAM, LONG[2], SHORT, tokens)


def test_a_cohort_that_everybody_left_stops(server, wanted):
    before = settled(server)["aborted_cohorts"]
    for attempt in range(8):
        answers, _ = run(
            server,
            STREAM,
            (20, LONG[0], f"l{attempt}"),
            actions=[(24 + attempt, "/abort_request", {"rid": f"l{attempt}"})],
        )
        check({STREAM: answers[STREAM]}, wanted)
        counters = settled(server)
        if counters["aborted_cohorts"] > before:
            return
    pytest.fail(f"no cohort was dropped: {counters}")


@pytest.mark.parametrize("mode", ["retract", "in_place"])
@pytest.mark.parametrize("tokens", [2, 7, 16])
def test_pause_and_continue(server, wanted, mode, tokens):
    for _ in range(TRIES):
        answers, (paused, flushed, continued) = run(
            server,
            STREAM,
            (20, LONG[2], "long"),
            (21, SHORT, "short"),
            actions=[
                (20 + tokens, "/pause_generation", {"mode": mode}),
                (0, "/flush_cache", {}),  # the scheduler answers when it has paused
                (0, "/continue_generation", {}),
            ],
        )
        assert (paused, continued) == (200, 200)
        check(answers, wanted)
        settled(server)
        if flushed == 400:  # refused: requests were under way
            return
    pytest.fail("it paused when all was answered")


def test_a_prompt_that_is_only_scored(server, wanted):
    for _ in range(TRIES):
        merged = settled(server)["iterations:merged"]
        answers, _ = run(server, STREAM, (20, SCORED, "scored"))
        check(answers, wanted)
        assert len(answers[SCORED].prompt_logprobs) == 700
        if settled(server)["iterations:merged"] >= merged + 8:
            return
    pytest.fail("it was never layered")


def test_bad_requests_get_4xx_and_harm_nobody(server, wanted):
    bad = [
        {"input_ids": [1] * 9000, "sampling_params": {"max_new_tokens": 4}},
        {"input_ids": [], "sampling_params": {"max_new_tokens": 4}},
        {"text": "", "sampling_params": {"max_new_tokens": 4}},
        {"sampling_params": {"max_new_tokens": 4}},
        {"input_ids": [1, 2], "sampling_params": {"temperature": -1}},
        {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": -3}},
        {"input_ids": ["a"], "sampling_params": {}},
        {"input_ids": [1, 2], "sampling_params": {"json_schema": "{not a schema"}},
    ]
    answers, statuses = run(
        server,
        STREAM,
        (20, LONG[0], "long"),
        actions=[(21 + 2 * i, "/generate", body) for i, body in enumerate(bad)],
    )
    assert all(400 <= status < 500 for status in statuses), statuses
    check(answers, wanted)
    settled(server)


def test_openai_chat_streams_while_a_prompt_is_layered(server, wanted):
    """SGLang's own OpenAI route: same text streamed and not, alone and beside a cohort."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 120,
    }
    alone = server.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]

    async def go():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
            begun = asyncio.Event()

            async def chat():
                text = ""
                url = server.url + "/v1/chat/completions"
                async with session.post(url, json=body | {"stream": True}) as response:
                    assert response.status == 200
                    async for line in response.content:
                        if line.startswith(b"data: {"):
                            choice = json.loads(line[6:])["choices"][0]
                            text += choice["delta"].get("content") or ""
                            if text:
                                begun.set()
                return text

            async def later():
                await begun.wait()
                return (await generate(session, server, LONG[0], "beside"))[0]

            return await asyncio.gather(chat(), later())

    for _ in range(TRIES):
        merged = settled(server)["iterations:merged"]
        text, answer = asyncio.run(go())
        assert text == alone and len(text) > 50
        check({LONG[0]: answer}, wanted)
        if settled(server)["iterations:merged"] > merged:
            return
    pytest.fail("it was never layered")


def test_a_request_that_times_out_in_a_cohort(make_model, tmp_path):
    """``SGLANG_REQ_RUNNING_TIMEOUT`` reaches requests whose prompt is half computed."""
    # The warm-up is slower than that on a busy machine.
    flags = ["--num-layer-groups", "8", "--enable-metrics", "--skip-server-warmup"]
    command = layered_command(make_model(), free_port(), *flags)
    env = {"SGLANG_REQ_RUNNING_TIMEOUT": "0.2"}
    with running(command, tmp_path / "server.log", env) as s:
        stream = Request(STREAM.prompt, 8, IGNORE_EOS, stream=True)
        answers, _ = run(s, stream, (1, LONG[2], "long"))
        late = answers[LONG[2]]
        assert late.finish in ("abort", "length") or late.finish.startswith("http 503"), late.finish
        settled(s)
