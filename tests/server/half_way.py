"""Requests that catch a cohort half-way: sent by the tokens of a stream, or filling the KV pool."""

from __future__ import annotations

import random

from harness import Request, answer_of, difference
from timed import run as run

_RNG = random.Random(3)
IGNORE_EOS = (("ignore_eos", True),)


def prompt(n: int) -> tuple[int, ...]:
    return tuple(_RNG.randrange(256) for _ in range(n))


STREAM = Request(prompt(20), 150, IGNORE_EOS, stream=True)
LONG = [Request(prompt(n), 6, IGNORE_EOS, logprob_start=0) for n in (1500, 1400, 2400)]
#: KV slots. All growing answers fit, so that nobody is retracted once the other prompts are answered.
POOL = 2900
#: Most of their tokens are prompt: the pool is nearly full after few steps, and they grow on.
GROWING = [Request(prompt(200), 80, IGNORE_EOS) for _ in range(10)]
SMALL = [Request(prompt(25), 1, IGNORE_EOS) for _ in range(2)]
#: Slots that they hold beside a filler: five grow for as long as the other five are a cohort.
HELD = 10 * 200 + 5 * 8 + 2 * 25
#: By the slots that they leave free in the pool.
FILLERS = {
    left: Request(prompt(POOL - HELD - left), 1, IGNORE_EOS) for left in (20, 45, 60, 80, 85, 90)
}
SHORT = Request(prompt(12), 10, IGNORE_EOS)
SCORED = Request(prompt(700), 0, logprob_start=0)  # prompt logprobs only
ALL = [STREAM, *LONG, *GROWING, *FILLERS.values(), *SMALL, SHORT, SCORED]


def check(answers, wanted, tolerance=1e-4):
    for request, answer in answers.items():
        problem = difference(answer, wanted[request], tolerance)
        assert problem is None, f"{len(request.prompt)} tokens: {problem}"


def settled(server):
    server.wait_idle()
    assert server.held_tokens() == 0
    return server.counters()


def fill_the_pool(server, left):
    """Answers by request: three prompts in a cohort fill the pool but for ``left`` slots.

    For a server that computes prompts of 1000 tokens in eight layer groups. Ten answers grow meanwhile,
    by 10 * 8 slots until the cohort has passed them all. They come in one request, which SGLang hands to
    its scheduler in one piece: what is admitted when does not depend on how fast anything is.
    """
    return ask_together(server, [*GROWING, FILLERS[left], *SMALL])


def ask_together(server, asked):
    """Answers by request, of one that holds all of ``asked``: they reach the scheduler in one piece."""
    bodies = [request.body(None) for request in asked]
    together = {name: [body[name] for body in bodies] for name in ("input_ids", "sampling_params")}
    response = server.post("/generate", **bodies[0] | together)
    assert response.status_code == 200, response.text
    return dict(zip(asked, map(answer_of, response.json()), strict=True))


def abort_beside(server, wanted, stream, long, short, tokens):
    """``long`` is aborted when ``stream`` has ``tokens`` more than it was sent at; the others' answers
    stay theirs."""
    answers, _ = run(
        server,
        stream,
        (20, long, "long"),
        (21, short, "short"),
        actions=[(20 + tokens, "/abort_request", {"rid": "long"})],
    )
    aborted = answers.pop(long)
    assert aborted.finish in ("abort", "length")
    assert aborted.tokens == wanted[long].tokens[: len(aborted.tokens)]
    check(answers, wanted)
    settled(server)
