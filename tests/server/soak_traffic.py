"""Traffic of a bad week, from a seed: what is asked, when, and what else happens meanwhile."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness import Answer, Request
from mixtures import make_requests

#: Tokens of a prompt. Three do not fit in the pool together.
LONGEST, POOL = 1100, 1400
#: SGLang answers them with status 4xx.
BAD: list[dict[str, Any]] = [
    {"input_ids": [1] * 9000, "sampling_params": {"max_new_tokens": 4}},
    {"input_ids": [], "sampling_params": {"max_new_tokens": 4}},
    {"sampling_params": {"max_new_tokens": 4}},
    {"input_ids": [1, 2], "sampling_params": {"temperature": -1}},
    {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": -3}},
    {"input_ids": ["a"], "sampling_params": {}},
    {"input_ids": [1, 2], "sampling_params": {"json_schema": "{not a schema"}},
    {"input_ids": [1, 2], "sampling_params": {"regex": "(["}},
    {"input_ids": [1] * 700, "sampling_params": {"custom_params": {"itl_slo_ms": -1}}},
]
POLICIES: list[dict[str, Any]] = [
    {"itl_slo_ms": 4},
    {"itl_slo_ms": 30},
    {"layer_group_policy": "slo"},
    {"layer_group_policy": "fixed", "num_layer_groups": 8},
    {"layer_group_policy": "fixed", "layer_group_tokens": 100},
]


def make_asked(count: int, seed: int, adapters: Sequence[str | None] = ()) -> list[Request]:
    """At most ``count`` different requests of up to :data:`LONGEST` tokens.

    Some only score their prompt, some have targets of their own.
    """
    rng = random.Random(seed)
    made = []
    for request in make_requests(count, seed):
        if any("penalty" in name or name == "min_new_tokens" for name, _ in request.sampling):
            continue  # a request taken back loses their history, in stock SGLang too
        more: dict[str, Any] = {}
        sampling = dict(request.sampling)
        prompt = request.prompt[: -(-len(request.prompt) * LONGEST // 3000)]
        start = min(request.logprob_start, len(prompt) - 1)
        request = replace(request, prompt=prompt, logprob_start=start)
        limit = request.max_new_tokens
        if rng.random() < 0.2:
            more["top_logprobs_num"] = rng.choice([1, 3])
        if not sampling and rng.random() < 0.25:
            limit, request = 0, replace(request, logprob_start=0)
        if rng.random() < 0.15:
            sampling["custom_params"] = _Frozen(itl_slo_ms=rng.choice([2, 8, 50, 1000]))
        if adapters:
            more["lora_path"] = rng.choice(adapters)
        request = replace(request, max_new_tokens=limit, sampling=tuple(sampling.items()))
        made.append(replace(request, more=tuple(more.items())))
    return made


class _Frozen(dict):
    """A field of a body, in a request that is a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


def continued(
    asked: Sequence[Request], answers: Sequence[list[Answer]], seed: int
) -> dict[int, Request]:
    """The next turn of some conversations: prompt, answer and more, by the first turn's index."""
    rng = random.Random(seed)
    turns = {}
    for i, (request, got) in enumerate(zip(asked, answers, strict=True)):
        plain = not request.sampling and len(got) == 1 and request.max_new_tokens
        if plain and len(request.prompt) < 600 and rng.random() < 0.7:
            said = tuple(rng.randrange(256) for _ in range(rng.choice([3, 60, 200])))
            prompt = request.prompt + tuple(got[0].tokens) + said
            turns[i] = replace(request, prompt=prompt, max_new_tokens=12, logprob_start=-1)
    return turns


@dataclass(frozen=True)
class Sent:
    """One HTTP request.

    Attributes:
        indices: of the requests asked; several go in one body.
        delay: seconds after the phase's begin.
        ending: ``abort`` (by id), ``disconnect``, or empty.
        after: seconds from sending to its ending.
        session: in a session, followed by the conversation's next turn.
    """

    indices: tuple[int, ...]
    delay: float
    ending: str = ""
    after: float = 0.0
    session: bool = False


@dataclass(frozen=True)
class Action:
    """What else happens ``at`` seconds after the phase's begin."""

    at: float
    method: str
    path: str
    body: dict[str, Any] | None
    statuses: Sequence[int] = (200,)


@dataclass(frozen=True)
class Phase:
    sent: list[Sent]
    actions: list[Action]

    @property
    def aborts_all(self) -> bool:
        return any((a.body or {}).get("abort_all") for a in self.actions)


def make_phase(asked: Sequence[Request], turns: dict[int, Request], seed: int) -> Phase:
    rng = random.Random(seed)
    spread = rng.choice([0.05, 0.4, 1.5])
    sent: list[Sent] = []
    for _ in range(rng.randint(4, 14)):
        delay, draw = rng.random() * spread, rng.random()
        ending = rng.choice(["abort", "disconnect"]) if rng.random() < 0.25 else ""
        after = rng.random() * rng.choice([0.05, 0.5])
        index = rng.randrange(len(asked))
        if draw < 0.12:
            together = rng.sample([i for i, request in enumerate(asked) if _may_share(request)], 3)
            sent.append(Sent(tuple(together), delay))
        elif draw < 0.24:  # the same prompt, several times at once
            sent += [Sent((index,), delay) for _ in range(rng.randint(2, 4))]
        elif draw < 0.36 and turns:
            sent.append(Sent((rng.choice(sorted(turns)),), delay, session=True))
        else:
            sent.append(Sent((index,), delay, ending, after))
    actions = []
    for _ in range(rng.randint(0, 3)):
        at = rng.random() * (spread + 0.4)
        actions += rng.choice([_bad, _pause, _flush, _policy, _health, _abort_all])(rng, at)
    return Phase(sent, actions)


def _may_share(request: Request) -> bool:
    """Whether it may be sent in one body with others."""
    return (
        not request.stream
        and "n" not in dict(request.sampling)
        and "top_logprobs_num" not in dict(request.more)
    )


def _bad(rng: random.Random, at: float) -> list[Action]:
    return [Action(at, "POST", "/generate", rng.choice(BAD), range(400, 500)) for _ in range(2)]


def _pause(rng: random.Random, at: float) -> list[Action]:
    mode = {"mode": rng.choice(["in_place", "retract"])}
    return [
        Action(at, "POST", "/pause_generation", mode),
        Action(at + rng.random() * 0.5, "POST", "/continue_generation", {}),
    ]


def _flush(rng: random.Random, at: float) -> list[Action]:
    return [Action(at, "POST", "/flush_cache", None, (200, 400))]


def _policy(rng: random.Random, at: float) -> list[Action]:
    return [Action(at, "PUT", "/layered_prefill", rng.choice(POLICIES))]


def _health(rng: random.Random, at: float) -> list[Action]:
    return [Action(at, "GET", "/health", None)]


def _abort_all(rng: random.Random, at: float) -> list[Action]:
    if rng.random() < 0.6:
        return []
    return [Action(at, "POST", "/abort_request", {"rid": "", "abort_all": True})]
