"""How long does this host launch? Two factors on the cost model's host time, learnt while serving.

With overlap the result of an iteration is looked for when the next one has been launched, so a launch is
the least that the iteration before it takes, whatever the GPU does. No profile knows a machine's host:
one took 44 ms for 48 eager layers, another 60. The scheduler's process reads its clock before and after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Share of a launch's logarithmic error that a factor takes over, and the most that an error counts as:
#: what is farther off is a stall, a kernel's first use for one, of which a start has many.
GAIN, STALL = 0.1, 0.5
#: A factor stays within ``1 / LIMIT … LIMIT``: hosts differ by less, and a launch that was measured while
#: the host waited for something else must not cut layer groups to pieces.
LIMIT = 4.0
#: Share of launches, stalls aside, that the spread should cover, how fast it follows, and its bound.
COVERED, SPREAD_GAIN, SPREAD_MOST = 0.95, 0.02, 0.5


@dataclass
class LaunchCorrection:
    """Factors on the host time of iterations with a layer group.

    Attributes:
        graphs: measured over predicted, of layer groups that replay graphs.
        eager: likewise of those that are launched layer by layer.
        spread: how much longer than that a launch may turn out, as a share; covers :data:`COVERED`.
        seen: launches learnt from.
    """

    graphs: float = 1.0
    eager: float = 1.0
    spread: float = 0.1
    seen: int = 0

    def factor(self, graphed: bool) -> float | None:
        """On the host time of a layer group, its spread included; None before any was measured."""
        if self.seen == 0:
            return None
        return (self.graphs if graphed else self.eager) * (1 + self.spread)

    def observe(self, seconds: float, predicted: float, graphed: bool) -> None:
        """Learn from one launch.

        Args:
            seconds: measured, from the result before it to its end.
            predicted: the model's uncorrected host time.
            graphed: its layers replay graphs.
        """
        if not (0 < seconds < math.inf and predicted > 0):
            return
        factor = self.graphs if graphed else self.eager
        error = math.log(seconds / predicted) - math.log(factor)
        if abs(error) < STALL:
            # A quantile by stochastic approximation: up by much when exceeded, down by little else.
            share = COVERED if error > math.log1p(self.spread) else COVERED - 1
            self.spread = min(max(self.spread + SPREAD_GAIN * share, 0.0), SPREAD_MOST)
        factor *= math.exp(GAIN * min(max(error, -STALL), STALL))
        factor = min(max(factor, 1 / LIMIT), LIMIT)
        if graphed:
            self.graphs = factor
        else:
            self.eager = factor
        self.seen += 1
