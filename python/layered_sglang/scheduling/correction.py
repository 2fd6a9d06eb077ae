"""What measured iterations say of the cost model: two factors and a margin, learnt while serving.

Robust and bounded: one slow iteration (a compiler, another tenant, a paused process) moves a factor by
little, and no number of them moves it beyond ``limit``.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

#: Share of a sample's logarithmic error that a factor takes over, and the most that an error counts
#: as, logarithmic: what is farther off is an outlier. The neighbour of a late iteration looks early, so
#: large errors come in pairs that must not decide.
GAIN, OUTLIER = 0.05, 0.1
#: The same for the first iterations of a model that starts from a data sheet, and how many those are.
FIRST_GAIN, FIRST_OUTLIER, FIRST = 0.25, 0.4, 30
#: Share of iterations that the margin should cover.
COVERED = 0.99
#: How fast the margin follows, as a share of the measured time per iteration.
MARGIN_GAIN = 0.02
MARGIN_MOST = 0.5


@dataclass
class OnlineCorrection:
    """Factors on the model's decode part and on its cohort part.

    Attributes:
        limit: a factor stays within ``1 / limit … limit``. A fitted profile deserves a small one.
        first: so many iterations move a factor by much. A fitted profile deserves none.
        decode: measured over predicted, iterations that only decode.
        cohort: likewise for what a layer group adds.
        margin: how much longer than predicted an iteration with a layer group may turn out, as a
            share; covers :data:`COVERED` of them, stalls aside.
        seen: iterations learnt from.
    """

    limit: float
    first: int = 0
    decode: float = 1.0
    cohort: float = 1.0
    margin: float = 0.05
    seen: int = 0

    def observe(
        self, seconds: float, decode_part: float, cohort_part: float, exact: bool = True
    ) -> None:
        """Learn from one iteration.

        Args:
            seconds: measured.
            decode_part: the model's uncorrected prediction without a layer group.
            cohort_part: what the layer group adds to that prediction; 0 without one.
            exact: it is this iteration's own time; the margin learns from no other.
        """
        predicted = self.decode * decode_part + self.cohort * cohort_part
        if not (seconds > 0 and math.isfinite(seconds)) or predicted <= 0:
            return
        error = math.log(max(seconds / predicted, sys.float_info.min))
        # While the factors are far off, or where something stalled, an error is no spread.
        # What decode alone takes is nothing that the planner could shorten.
        if abs(error) < FIRST_OUTLIER and self.seen >= self.first and cohort_part > 0 and exact:
            self._move_margin(seconds / predicted - 1)
        most = FIRST_OUTLIER if self.seen < self.first else OUTLIER
        error = min(max(error, -most), most)
        self.seen += 1
        if cohort_part > 0:
            # A part too small to be seen in the sum teaches nothing about itself.
            share = self.cohort * cohort_part / predicted
            self.cohort = self._moved(self.cohort, error * share)
        else:
            self.decode = self._moved(self.decode, error)

    def _moved(self, factor: float, error: float) -> float:
        gain = FIRST_GAIN if self.seen <= self.first else GAIN
        return min(max(factor * math.exp(gain * error), 1 / self.limit), self.limit)

    def _move_margin(self, excess: float) -> None:
        """A quantile by stochastic approximation: up by much when exceeded, down by little else."""
        step = MARGIN_GAIN * (COVERED if excess > self.margin else COVERED - 1)
        self.margin = min(max(self.margin + step, 0.0), MARGIN_MOST)
