"""The requests of compare_with_stock.py beside those of tests/server/mixtures.py."""

from __future__ import annotations

import random
from dataclasses import replace

import adapters
from harness import Request
from mixtures import VOCABULARY, Arrival
from pictures import IMAGE, picture


def long_prompts(
    seed: int, running: int, running_tokens: int, prompts: int, scored_from: float
) -> tuple[list[Request], list[Arrival]]:
    """Requests that decode from the start, and prompts of up to 3000 tokens that come meanwhile.

    Args:
        running: requests that decode ``running_tokens`` tokens each.
        prompts: how many come beside them.
        scored_from: the part of a prompt, 0 to 1, behind which its log-probabilities are asked for. What
            comes before it may be cached.
    """
    rng = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(count))

    forever = (("ignore_eos", True),)
    asked = [
        Request(tokens(20 + 7 * i), running_tokens, forever, stream=True) for i in range(running)
    ]
    arrivals = [Arrival(i, 0.0, None) for i in range(running)]
    for i in range(prompts):
        length = 3000 if i == 0 else rng.randint(500, 3000)
        start = int(length * scored_from)
        asked.append(Request(tokens(length), 24, forever, logprob_start=start))
        arrivals.append(Arrival(len(asked) - 1, 0.2 + 0.08 * i, None))
    return asked, arrivals


def with_adapters(asked: list[Request]) -> list[Request]:
    """The same requests, each with an adapter or, every fourth, without."""
    names = (*adapters.NAMES, None)
    return [
        replace(request, more=(("lora_path", names[i % len(names)]),))
        for i, request in enumerate(asked)
    ]


def with_pictures(asked: list[Request], seed: int) -> list[Request]:
    """The same requests, every third with a picture in the middle of its prompt.

    Of these no log-probabilities of the prompt are asked for: the picture's places hold no tokens.
    """
    rng = random.Random(seed)

    def seen(request: Request) -> Request:
        middle = len(request.prompt) // 2
        prompt = request.prompt[:middle] + IMAGE + request.prompt[middle:]
        shown = picture(rng, 32 * rng.randint(2, 8), 32 * rng.randint(2, 8))
        return replace(request, prompt=prompt, images=(shown,), logprob_start=-1)

    return [seen(request) if i % 3 == 0 else request for i, request in enumerate(asked)]
