"""What measured iterations teach, where a long launch lets a result be seen late.

An iteration's time is the one from the result before it to its own. With overlap the host looks for a
result when it has launched the next iteration. Launching a cohort's first layer group (its prompts are
admitted, its layers launched) may take longer than the GPU needs for the iteration before; that one's
result is then seen late, and the group's own comes as much earlier. Each time alone is wrong, by many
times what a model is off by; their sum is right.
"""

from __future__ import annotations

from layered_sglang.scheduling.estimator import Estimator
from layered_sglang.scheduling.work import Iteration

#: Iterations that are learnt from together at most. Whole prompts that follow one another are all
#: launched long; by then one late result is a small part of the sum.
MOST_TOGETHER = 8


class Lessons:
    """Feeds an estimator with iterations in the order in which they were launched."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self._held: list[Iteration] = []
        self._seconds = 0.0

    def measured(self, iteration: Iteration, seconds: float, before_long_launch: bool) -> None:
        """``iteration`` took ``seconds``.

        Args:
            before_long_launch: its result was looked for only after a cohort's first layer group, or a
                whole prefill, had been launched.
        """
        if not iteration.first:
            self.forget()
        self._held.append(iteration)
        self._seconds += seconds
        if before_long_launch and len(self._held) < MOST_TOGETHER:
            return
        alone = len(self._held) == 1 and not before_long_launch
        self._estimator.observe(self._held, self._seconds, exact=alone and not iteration.first)
        self.forget()

    def forget(self) -> None:
        """The next iteration does not follow the last one that was measured."""
        self._held, self._seconds = [], 0.0
