"""Fixed traffic in which a broken admission rule shows."""

from __future__ import annotations

import random

from worlds import Prompt


def overload(seconds: float) -> list[Prompt]:
    """Twice what a nominal H200 can take, for ``seconds``: short prompts, and one long one among them."""
    every = 0.015
    short = [Prompt(i * every, 2000) for i in range(int(seconds / every))]
    return [*short, Prompt(1.0, 8000)]


def long_among_short(seed: int = 5) -> list[Prompt]:
    """A prompt of 16,000 tokens every two seconds among short ones."""
    rng = random.Random(seed)
    short = [Prompt(rng.uniform(0, 20), rng.randint(50, 900)) for _ in range(160)]
    return [*short, *(Prompt(2.0 * i, 16_000) for i in range(10))]


def storm(priorities: int = 1, seed: int = 8) -> list[Prompt]:
    """Long prompts among more short ones, alone and in bursts, than may overtake them."""
    rng = random.Random(seed)
    short = [Prompt(0.012 * i, 200, rng.randrange(priorities)) for i in range(300)]
    burst = [Prompt(0.5 * (i // 40) + 0.2, 400, rng.randrange(priorities)) for i in range(240)]
    long = [Prompt(0.25 * i, 16_000, rng.randrange(priorities)) for i in range(8)]
    return [*short, *burst, *long]
