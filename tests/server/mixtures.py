"""Seeded requests and seeded mixtures of them: who arrives when, and who is aborted."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
from harness import Answer, Request, Server, difference, generate

VOCABULARY = 256  # the byte tokens
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'


def make_requests(count: int, seed: int) -> list[Request]:
    """``count`` different requests: 1 to 3000 prompt tokens, shared prefixes, sampling options."""
    rng = random.Random(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(n))

    prefixes = [tokens(n) for n in (30, 200, 600, 1400)]
    options = [
        (),
        (),
        (),
        (("ignore_eos", True),),
        (("frequency_penalty", 0.7),),
        # Not both in one request: without overlap SGLang applies them in an order that changes from
        # one server to the next, and they do not commute.
        (("presence_penalty", 0.5),),
        (("repetition_penalty", 1.2),),
        (("min_new_tokens", 6),),
        (("stop_token_ids", tuple(range(97, 123))),),
        (("stop", ("a", "e")),),
        (("n", 2),),
        (("json_schema", SCHEMA),),
    ]
    made = []
    for i in range(count):
        low, high = rng.choice([(1, 16), (1, 16), (17, 200), (17, 200), (201, 900), (901, 3000)])
        prompt = tokens(rng.randint(low, high))
        if rng.random() < 0.35:
            prompt = (rng.choice(prefixes) + prompt)[:3000]
        sampling = rng.choice(options)
        max_new_tokens = rng.choice([1, 2, 8, 16, 24, 32])
        made.append(
            Request(
                prompt=tokens(1) if i == 0 else tokens(3000) if i == 1 else prompt,
                max_new_tokens=max(max_new_tokens, dict(sampling).get("min_new_tokens", 1)),
                sampling=sampling,
                stream=rng.random() < 0.4,
                logprob_start=rng.choice([-1, -1, 0, len(prompt) // 2]),
                priority=rng.randrange(3),
            )
        )
    return made


def penalised(request: Request) -> bool:
    return any("penalty" in name for name, _ in request.sampling)


@dataclass(frozen=True)
class Arrival:
    """Request ``index`` arrives after ``delay`` s; aborted ``abort_after`` s later if that is set."""

    index: int
    delay: float
    abort_after: float | None


def make_mixture(num_requests: int, seed: int) -> list[Arrival]:
    rng = random.Random(seed)
    return [
        Arrival(
            index=rng.randrange(num_requests),
            delay=rng.random() * rng.choice([0.1, 0.8]),
            abort_after=rng.random() * 0.6 if rng.random() < 0.2 else None,
        )
        for _ in range(rng.randint(3, 9))
    ]


async def play(
    server: Server,
    requests_: list[Request],
    references: Sequence[list[Answer]] | Mapping[int, list[Answer]],
    compared: Sequence[bool] | Mapping[int, bool],
    mixture: list[Arrival],
    priorities: bool,
) -> list[str]:
    """Send a mixture; returns what differed from the references, one line each.

    Args:
        references: the answers to each of ``requests_``, by its index in them.
        compared: whether an answer has to be its reference, by the same index.
    """
    wrong: list[str] = []

    async def one(session: aiohttp.ClientSession, number: int, arrival: Arrival) -> None:
        request = requests_[arrival.index]
        if not priorities:
            request = Request(**{**request.__dict__, "priority": None})
        several = dict(request.sampling).get("n", 1) > 1
        await asyncio.sleep(arrival.delay)
        rid = None if several else f"r{number}-{time.time_ns()}"
        task = asyncio.create_task(generate(session, server, request, rid))
        aborted = arrival.abort_after is not None and rid is not None
        if aborted:
            await asyncio.sleep(arrival.abort_after)
            async with session.post(server.url + "/abort_request", json={"rid": rid}):
                pass
        answers = await task
        wants = references[arrival.index]
        assert len(answers) == len(wants), (answers, wants)
        for answer, want in zip(answers, wants, strict=True):
            if not compared[arrival.index]:
                problem = None if answer.finish in (want.finish, "abort") else answer.finish
            elif aborted and answer.finish == "abort":
                # What came before the abort must still be right.
                n = len(answer.tokens)
                if answer.tokens == want.tokens[:n]:
                    problem = None
                else:
                    problem = f"{answer.tokens} before the abort, of {want.tokens}"
            else:
                problem = difference(answer, want)
            if problem:
                wrong.append(
                    f"request {arrival.index} ({len(request.prompt)} tokens, {request.sampling}, "
                    f"stream={request.stream}, logprob_start={request.logprob_start}): {problem}"
                )

    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(one(session, i, a) for i, a in enumerate(mixture)))
    return wrong
