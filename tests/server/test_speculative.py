"""Speculative decoding: a draft model's chains of tokens beside prompts that advance by layer groups.

Greedy answers do not depend on the draft, so they are compared with those that SGLang gives without one.
How much of a draft is accepted does depend on what the draft has read of the prompt: where draft and model
are the same, nearly all of it is.
"""

from __future__ import annotations

import pytest
from half_way import IGNORE_EOS, check, prompt, run, settled
from harness import Request, free_port, layered_command, running

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

STREAM = Request(prompt(20), 400, IGNORE_EOS, stream=True)
LONG = [Request(prompt(n), 12, IGNORE_EOS, logprob_start=0) for n in (900, 700, 1700)]
SHORT = Request(prompt(12), 10, IGNORE_EOS)
#: Outgrow a pool of 3300 tokens together.
GROWING = [Request(prompt(180), 200, IGNORE_EOS) for _ in range(8)]
SECOND = [Request(prompt(400), 40, IGNORE_EOS) for _ in range(4)]
ALL = [STREAM, *LONG, SHORT, *GROWING, *SECOND]

#: Model, draft model, schedule.
SERVED = [
    ("tiny", "tiny-qwen3", "overlap"),
    ("tiny-qwen3", "tiny-qwen3", "overlap"),
    ("tiny-qwen3", "tiny-qwen3", "sync"),
    ("tiny-gpt-oss", "tiny-qwen3", "overlap"),
]


@pytest.fixture(scope="module", params=SERVED, ids="-".join)
def served(request):
    return request.param


@pytest.fixture(scope="module")
def wanted(served, ask_stock):
    """Stock SGLang's answers, without a draft."""
    answers = ask_stock(ALL, model=served[0])
    return {request: answer for request, (answer,) in zip(ALL, answers, strict=True)}


@pytest.fixture(scope="module")
def server(served, make_model, tmp_path_factory):
    model, draft, schedule = served
    flags = ["--num-layer-groups", "8", "--layered-max-prefill-tokens", "1000", "--enable-metrics"]
    flags += ["--max-total-tokens", "3300", "--schedule-conservativeness", "0.01"]
    flags += ["--speculative-algorithm", "STANDALONE", "--speculative-num-steps", "3"]
    flags += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4"]
    flags += ["--speculative-draft-model-path", str(make_model(draft))]
    flags += [] if schedule == "overlap" else ["--disable-overlap-schedule"]
    log = tmp_path_factory.mktemp("speculative") / "server.log"
    with running(layered_command(make_model(model), free_port(), *flags), log) as s:
        yield s


def accept_length(server) -> float:
    """Tokens that an iteration gave a request, on average since the server was asked last."""
    return server.get("/server_info").json()["internal_states"][0]["avg_spec_accept_length"]


def test_prompts_advance_between_drafts(server, wanted, served):
    before = settled(server)
    answers, _ = run(
        server, STREAM, (20, LONG[0], "first"), (24, LONG[2], "cut"), (25, SHORT, "short")
    )
    check(answers, wanted)
    after = settled(server)
    assert after["iterations:merged"] >= before.get("iterations:merged", 0) + 8
    assert after["cohorts"] >= before["cohorts"] + 2
    if served[0] == served[1]:
        # A draft that had not read the prompts would be right about none of their answers.
        for request in LONG[0], LONG[2]:
            settled(server)
            answers, _ = run(server, STREAM, (20, request, "again"))
            check(answers, wanted)
        assert accept_length(server) > 3.5


@pytest.mark.parametrize("tokens", [0, 8, 16, 30])
def test_abort_at_every_phase(server, wanted, tokens):
    answers, _ = run(
        server,
        STREAM,
        (20, LONG[2], "long"),
        (21, SHORT, "short"),
        actions=[(20 + tokens, 0.0, "/abort_request", {"rid": "long"})],
    )
    aborted = answers.pop(LONG[2])
    assert aborted.finish in ("abort", "length")
    assert aborted.tokens == wanted[LONG[2]].tokens[: len(aborted.tokens)]
    check(answers, wanted)
    settled(server)


def test_the_pool_runs_out(server, wanted):
    """Requests are retracted, and cohorts restart, until all have what they want."""
    for attempt in range(6):
        before, log = settled(server)["restarted_cohorts"], len(server.log_end(10**6))
        first, *others = GROWING
        answers, _ = run(
            server,
            Request(first.prompt, first.max_new_tokens, first.sampling, stream=True),
            *((1, request, f"g{attempt}-{i}") for i, request in enumerate(others)),
            *((2 + 9 * i, request, f"s{attempt}-{i}") for i, request in enumerate(SECOND)),
        )
        check({r: a for r, a in answers.items() if not r.stream}, wanted)
        retracted = "Retract requests" in server.log_end(10**6)[log:]
        if retracted or settled(server)["restarted_cohorts"] > before:
            return
    pytest.fail("the pool never ran out")
