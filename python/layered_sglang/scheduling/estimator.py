"""The cost model as it is corrected by the iterations of this server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layered_sglang.scheduling.correction import OnlineCorrection
from layered_sglang.scheduling.cost_model import CostModel, IterationTime
from layered_sglang.scheduling.work import CohortWork, DecodeWork, Iteration

#: A factor's bound with a fitted profile, and without one.
FITTED_LIMIT, NOMINAL_LIMIT = 2.0, 50.0


@dataclass(eq=False)
class Estimator:
    """Predicts iterations, and learns from measured ones.

    Every tensor-parallel rank holds one and feeds it the same measurements (rank 0's), so that all
    predict the same to the last bit.
    """

    model: CostModel
    correction: OnlineCorrection = field(default_factory=lambda: OnlineCorrection(FITTED_LIMIT))

    @property
    def num_layers(self) -> int:
        return self.model.shape.num_layers

    @property
    def margin(self) -> float:
        """Share by which an iteration may exceed its prediction; see :class:`OnlineCorrection`."""
        return self.correction.margin

    def decode(self, decode: DecodeWork) -> float:
        """Seconds of an iteration that only decodes."""
        return self.correction.decode * self.model.decode(decode).seconds()

    def merged(self, decode: DecodeWork, cohort: CohortWork) -> IterationTime:
        """Decode and a layer group, as a line in the group's layers."""
        line = self.model.merged(decode, cohort)
        return line.scaled(self.correction.decode, self.correction.cohort)

    def prefill(self, cohort: CohortWork) -> float:
        """Seconds of SGLang's own prefill of these prompts."""
        return self.correction.cohort * self.model.prefill(cohort).seconds()

    def need(self, cohort: CohortWork) -> float:
        """Seconds of the GPU that these prompts need alone. How long the host would take to launch
        SGLang's own prefill says nothing of them: in layer groups it launches graphs, or hides behind
        the running requests."""
        return self.correction.cohort * self.model.prefill(cohort).device_seconds()

    def observe(self, iterations: Sequence[Iteration], seconds: float, exact: bool = True) -> None:
        """Learn from iterations that followed one another and took ``seconds`` in all.

        Without ``exact`` the time may hold some of a neighbour's, so it says nothing of the margin.
        """
        without, added = 0.0, 0.0
        for it in iterations:
            if it.cohort is None or it.layers == 0:
                without += self.model.decode(it.decode).seconds()
                continue
            line = self.model.merged(it.decode, it.cohort)
            alone = line.seconds(0)
            without += alone
            added += line.at(it.first, it.last).seconds(it.layers) - alone
        self.correction.observe(seconds, without, added, exact)
