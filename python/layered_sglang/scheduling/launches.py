"""How long does this host launch? Two factors on the cost model's host time, learnt while serving.

With overlap the result of an iteration is looked for when the next one has been launched, so a launch is
the least that the iteration before it takes, whatever the GPU does. No profile knows a machine's host:
one took 44 ms for 48 eager layers, another 60. The scheduler's process reads its clock before and after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Share of launches that a factor should cover. They vary by 10 to 25%, and a late one misses a target.
COVERED = 0.95
#: The most that a launch moves a factor by, logarithmic: a stall counts as any launch that was too long.
STEP = 0.1
#: A factor stays within ``1 / LIMIT … LIMIT``: hosts differ by less, and a launch that was measured while
#: the host waited for something else must not cut layer groups to pieces.
LIMIT = 4.0


@dataclass
class LaunchCorrection:
    """Factors on the host time of iterations with a layer group.

    Attributes:
        graphs: measured over predicted, of layer groups that replay graphs; covers :data:`COVERED`.
        eager: likewise of those that are launched layer by layer.
        seen: launches learnt from.
    """

    graphs: float = 1.0
    eager: float = 1.0
    seen: int = 0

    def factor(self, graphed: bool) -> float | None:
        """On the host time of a layer group; None where no launch has been measured."""
        if self.seen == 0:
            return None
        return self.graphs if graphed else self.eager

    def observe(self, seconds: float, predicted: float, graphed: bool) -> None:
        """Learn from one launch: a quantile by stochastic approximation, up by much when it took longer
        than predicted, down by little else.

        Args:
            seconds: measured, from the result before it to its end.
            predicted: the model's uncorrected host time.
            graphed: its layers replay graphs.
        """
        if not (seconds > 0 and math.isfinite(seconds) and predicted > 0):
            return
        factor = self.graphs if graphed else self.eager
        step = STEP * (COVERED if seconds > factor * predicted else COVERED - 1)
        factor = min(max(factor * math.exp(step), 1 / LIMIT), LIMIT)
        if graphed:
            self.graphs = factor
        else:
            self.eager = factor
        self.seen += 1
