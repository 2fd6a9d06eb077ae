"""The closing table: what the chat and the long prompts got under each schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

ON_GPU = ("A model this small shows the schedule, not a GPU's speed.",)
ON_CPU = (
    "On a CPU this shows the schedule, not GPU speed: the attention used here computes all earlier",
    "tokens again with every chunk, which makes chunks look worse than they are on a GPU, and what",
    "layered prefill saves there, loading each expert once a prompt, costs next to nothing here.",
)


@dataclass(frozen=True)
class Measured:
    """What was measured under one schedule.

    Attributes:
        title: the schedule.
        gaps: seconds between the chat's tokens, as the client saw them.
        ttfts: seconds to the first token of each long prompt, as the client saw them.
        text: the chat's answer; how far it went depends on how long the prompts took.
    """

    title: str
    gaps: tuple[float, ...]
    ttfts: tuple[float, ...]
    text: str


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that ``percent`` % of them do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def table(runs: Sequence[Measured]) -> list[str]:
    """The table, line by line."""
    width = max(len(run.title) for run in runs)
    lines = [
        f"{'':<{width}}   chat: ms between tokens (ITL)    long prompts: s to first token (TTFT)",
        f"{'':<{width}}    {'mean':>6}  {'P99':>6}  {'max':>6}           {'mean':>6}  {'max':>6}",
    ]
    for run in runs:
        itl = (fmean(run.gaps), percentile(run.gaps, 99), max(run.gaps))
        ttft = (fmean(run.ttfts), max(run.ttfts))
        lines.append(
            f"{run.title:<{width}}    {'  '.join(f'{1000 * x:6.0f}' for x in itl)}"
            f"           {'  '.join(f'{x:6.2f}' for x in ttft)}"
        )
    return lines


def remarks(runs: Sequence[Measured], on_gpu: bool, busy: bool) -> list[str]:
    """What to make of the table; ``busy``: other programs took processor time."""
    lines = []
    if len(runs) > 1:
        common = min(len(run.text) for run in runs)
        same = len({run.text[:common] for run in runs}) == 1
        lines.append(
            f"The chat's answer is the same under all of them ({common} tokens compared)."
            if same
            else "The chat's answers differ: sums in another order tipped a close choice of token."
        )
    if busy:
        lines.append(
            "The machine had other work when this began, so the times are rough: try again."
        )
    lines += ON_GPU if on_gpu else ON_CPU
    return lines
