"""Speculative decoding: a draft model's chains of tokens beside prompts that advance by layer groups.

Greedy answers do not depend on the draft, so they are compared with those that SGLang gives without
one. How much of a draft is accepted does depend on what the draft has read of the prompt.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from half_way import IGNORE_EOS, abort_beside, ask_together, check, prompt, settled
from harness import Request, free_port, layered_command, running
from layered_sglang.model_zoo import find_preset
from layered_sglang.model_zoo.draft import write_eagle3_draft
from timed import TRIES, run

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

STREAM = Request(prompt(20), 160, IGNORE_EOS, stream=True)
LONG = [Request(prompt(n), 40, IGNORE_EOS, logprob_start=0) for n in (900, 700, 1700)]
SHORT = Request(prompt(12), 10, IGNORE_EOS)
#: Ten outgrow a pool of 3300 tokens before the first of them ends: an iteration gives none of them more
#: than four tokens, and all of them 2.4 on average, or one each.
GROWING = [Request(prompt(200), 280, IGNORE_EOS) for _ in range(10)]
ALL = [STREAM, *LONG, SHORT, *GROWING]

#: Model and draft model. One draft has weights of its own, and next to nothing of it is accepted; where
#: both are the same much is.
SERVED = [("tiny", "eagle3"), ("tiny-qwen3", "tiny-qwen3")]
#: Models with windows in a pool of their own, and with latent attention, and their schedules.
OTHERS = [("tiny-gpt-oss", "sync"), ("tiny-deepseek-v3", "overlap")]
POOL = ["--max-total-tokens", "3300", "--schedule-conservativeness", "0.01"]


def draft_flags(draft: str, make_model, folder: Path) -> list[str]:
    flags = ["--speculative-num-steps", "3", "--speculative-eagle-topk", "1"]
    flags += ["--speculative-num-draft-tokens", "4"]
    algorithm, path = "STANDALONE", None
    if draft == "eagle3":
        algorithm, path = "EAGLE3", write_eagle3_draft(find_preset("tiny").config, folder / draft)
    flags += ["--speculative-draft-model-path", str(path or make_model(draft))]
    return [*flags, "--speculative-algorithm", algorithm]


def command(model: Path, *flags: str) -> list[str]:
    ours = ["--num-layer-groups", "8", "--layered-max-prefill-tokens", "1000", "--enable-metrics"]
    return layered_command(model, free_port(), *ours, *flags)


def advance(server, wanted) -> None:
    """Prompts pass their layer groups between drafts, one of them cut, and all answers are right."""
    merged = 0
    for attempt in range(TRIES):
        before = settled(server)
        answers, _ = run(
            server,
            STREAM,
            (20, LONG[0], f"first{attempt}"),
            (24, LONG[2], f"cut{attempt}"),
            (25, SHORT, f"short{attempt}"),
        )
        check(answers, wanted)
        after = settled(server)
        merged = after.get("iterations:merged", 0) - before.get("iterations:merged", 0)
        if merged >= 14 and after["cohorts"] >= before["cohorts"] + 2:
            return
    pytest.fail(f"{merged} layer groups ran before the last ones")


@pytest.mark.parametrize("served", OTHERS, ids="-".join)
def test_models_with_other_attention(served, make_model, ask_stock, tmp_path):
    model, schedule = served
    sent = [STREAM, *LONG, SHORT]
    answers = ask_stock(sent, model=model)
    wanted = {request: answer for request, (answer,) in zip(sent, answers, strict=True)}
    flags = draft_flags("tiny-qwen3", make_model, tmp_path)
    flags += [] if schedule == "overlap" else ["--disable-overlap-schedule"]
    with running(command(make_model(model), *flags), tmp_path / "server.log") as server:
        advance(server, wanted)


@pytest.fixture(scope="module", params=SERVED, ids="-".join)
def served(request):
    return request.param


@pytest.fixture(scope="module")
def wanted(served, ask_stock):
    """Stock SGLang's answers, without a draft."""
    answers = ask_stock(ALL, model=served[0])
    return {request: answer for request, (answer,) in zip(ALL, answers, strict=True)}


@pytest.fixture(scope="module")
def draft(served, make_model, tmp_path_factory):
    return draft_flags(served[1], make_model, tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="module")
def server(served, draft, make_model, tmp_path_factory):
    log = tmp_path_factory.mktemp("speculative") / "server.log"
    with running(command(make_model(served[0]), *POOL, *draft), log) as s:
        yield s


def test_prompts_advance_between_drafts(server, wanted):
    advance(server, wanted)


def test_as_much_of_a_draft_is_accepted(server, wanted, served, draft, ask_stock):
    """As much as when SGLang's own prefill reads the prompts. A draft that had not read one would be
    right about little of its answer."""
    sent = LONG[:2]
    stock = ask_stock(sent, *draft, model=served[0])
    for request, (theirs,) in zip(sent, stock, strict=True):
        for attempt in range(TRIES):
            layered = settled(server)["cohorts"]
            answers, _ = run(server, STREAM, (20, request, f"again{attempt}"))
            check(answers, wanted)
            assert abs(answers[request].drafts - theirs.drafts) <= 1
            if settled(server)["cohorts"] > layered:
                break
        else:
            pytest.fail("it was never layered")
    if served[0] == served[1]:
        tokens = sum(request.max_new_tokens - 1 for request in sent)
        assert tokens > 1.4 * sum(answer.drafts for (answer,) in stock)


@pytest.mark.parametrize("tokens", [3, 9, 22])
def test_abort_at_every_phase(server, wanted, tokens):
    abort_beside(server, wanted, STREAM, LONG[2], SHORT, tokens)


def test_the_pool_runs_out(server, wanted):
    """Requests that come together outgrow the pool: some are retracted, and advance by layer groups again
    beside the others."""
    before, log = settled(server), len(server.log_end(10**6))
    check(ask_together(server, GROWING), wanted)
    assert "Retract requests" in server.log_end(10**6)[log:]
    assert settled(server)["cohorts"] > before["cohorts"]
