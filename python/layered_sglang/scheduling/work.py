"""What one iteration has to compute, in the quantities that its time depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodeWork:
    """The decode rows of an iteration.

    Attributes:
        requests: running requests, one row each.
        context: tokens that they attend to, over all of them.
    """

    requests: int = 0
    context: int = 0


@dataclass(frozen=True)
class CohortWork:
    """A cohort's rows, for every layer of the active layer group.

    Attributes:
        tokens: prompt tokens computed (cached prefixes are not among them).
        pairs: (query, key) pairs of causal attention, over all its prompts.
        prompts: prompts in it.
    """

    tokens: int
    pairs: float
    prompts: int = 1

    def __add__(self, other: CohortWork) -> CohortWork:
        return CohortWork(
            self.tokens + other.tokens, self.pairs + other.pairs, self.prompts + other.prompts
        )

    @staticmethod
    def of_prompt(tokens: int, prefix: int = 0) -> CohortWork:
        """``tokens`` new tokens behind ``prefix`` that the KV cache holds."""
        return CohortWork(tokens, tokens * prefix + tokens * (tokens + 1) / 2)


@dataclass(frozen=True)
class Iteration:
    """What was launched: decode rows, and ``layers`` (of mean cost) of a cohort, its ``first`` or its
    ``last`` layer group or one between."""

    decode: DecodeWork
    cohort: CohortWork | None = None
    layers: float = 0.0
    first: bool = False
    last: bool = False
