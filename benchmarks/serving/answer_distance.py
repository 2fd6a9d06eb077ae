"""How far the log-probabilities of two servers' answers are apart, where that says something."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness import Answer

#: Standard deviation of log-probabilities, nats. Logits of unit variance give 1; below this the
#: answers hardly depend on the model, and rounding is all that could differ.
MIN_SPREAD = 0.1


class VoidComparison(Exception):
    """The log-probabilities cannot tell two servers apart; the message is one line that says why."""


def distance(got: Sequence[Answer], want: Sequence[Answer], same_kernels: bool) -> dict:
    """Distances over all prompt tokens and first answers, absolute and over the spread of `want`.

    Raises:
        VoidComparison: there are none or values that are not finite; `want` is nearly constant; or
            other kernels (not `same_kernels`) computed the very same bits everywhere.
    """
    pairs = [
        pair
        for a, b in zip(got, want, strict=True)
        for pair in zip(_values(a), _values(b), strict=True)
    ]
    _check_finite(pairs)
    mean = statistics.fmean(y for _, y in pairs)
    spread = statistics.pstdev(y for _, y in pairs)
    if spread < MIN_SPREAD:
        raise VoidComparison(
            f"all {len(pairs)} log-probabilities are about {mean:.2f} (standard deviation "
            f"{spread:.1e}, expected {MIN_SPREAD} or more), so they tell nothing of the model; "
            "check its weights"
        )
    differences = [abs(x - y) for x, y in pairs]
    if not same_kernels and max(differences) == 0:
        raise VoidComparison(
            f"all {len(pairs)} log-probabilities are equal to the last bit, though other kernels "
            "computed them, so the experts do not show in them; check the model's weights"
        )
    rms = statistics.fmean(d * d for d in differences) ** 0.5
    return {
        "logprobs": len(pairs),
        "spread": spread,
        "mean": statistics.fmean(differences),
        "rms": rms,
        "max": max(differences),
        "rms_over_spread": rms / spread,
        "same_first_token": sum(
            a.tokens[:1] == b.tokens[:1] for a, b in zip(got, want, strict=True)
        ),
        "prompts": len(got),
    }


def _values(answer: Answer) -> list[float]:
    """Of the prompt's tokens but the first, which has none, and of the first answered token."""
    values = answer.prompt_logprobs[1:] + answer.logprobs[:1]
    return [math.nan if x is None else x for x in values]  # JSON knows no NaN


def _check_finite(pairs: list[tuple[float, float]]) -> None:
    if not pairs:
        raise VoidComparison("the answers hold no log-probabilities; ask for them")
    broken = sum(not (math.isfinite(x) and math.isfinite(y)) for x, y in pairs)
    if broken:
        raise VoidComparison(
            f"{broken} of {len(pairs)} log-probabilities are NaN or infinite; check the weights"
        )
