"""The cost model as it is corrected by the iterations of this server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from layered_sglang.scheduling.correction import OnlineCorrection
from layered_sglang.scheduling.cost_model import CostModel, IterationTime
from layered_sglang.scheduling.launches import LaunchCorrection
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
    launches: LaunchCorrection = field(default_factory=LaunchCorrection)

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
        host = self.launches.factor(self.model.graphed(decode, cohort))
        return line.scaled(self.correction.decode, self.correction.cohort, host)

    def prefill(self, cohort: CohortWork) -> float:
        """Seconds of SGLang's own prefill of these prompts."""
        host = self.launches.factor(cohort.tokens <= self.model.prefill_graph_rows)
        cohort_factor = self.correction.cohort
        return self.model.prefill(cohort).scaled(cohort_factor, cohort_factor, host).seconds()

    def need(self, cohort: CohortWork) -> float:
        """Seconds of the GPU that these prompts need alone. How long the host would take to launch
        SGLang's own prefill says nothing of them: in layer groups it launches graphs, or hides behind
        the running requests."""
        return self.correction.cohort * self.model.prefill(cohort).device_seconds()

    def observe(self, iterations: Sequence[Iteration], seconds: float, exact: bool = True) -> None:
        """Learn from iterations that followed one another and took ``seconds`` in all.

        Without ``exact`` the time may hold some of a neighbour's, so it says nothing of the margin.
        """
        without, added, host = 0.0, 0.0, 0.0
        launches_known = self.launches.seen > 0
        for it in iterations:
            if it.cohort is None or it.layers == 0:
                without += self.model.decode(it.decode).seconds()
                continue
            line = self.model.merged(it.decode, it.cohort)
            own = line.at(it.first, it.last)
            if launches_known:
                host += self.launch(it)
                alone, together = line.device_seconds(), own.device_seconds(it.layers)
            else:
                alone, together = line.seconds(), own.seconds(it.layers)
            without += alone
            added += together - alone
        if host > self.correction.decode * without + self.correction.cohort * added:
            return  # the host's launches took that long; they tell nothing of the GPU
        self.correction.observe(seconds, without, added, exact)

    def launch(self, iteration: Iteration) -> float:
        """Seconds in which the host launches an iteration with a layer group in it, or longer in one of
        twenty; the iteration before it takes at least as long."""
        assert iteration.cohort is not None
        line = self.merged(iteration.decode, iteration.cohort)
        return line.at(iteration.first, iteration.last).host_seconds(iteration.layers)

    def observe_launch(self, iteration: Iteration, seconds: float) -> None:
        """Learn from the launch of a layer group that took the host ``seconds``, from the result before
        it. Only with overlap is it a time of its own."""
        if iteration.cohort is None or not self.model.overlap:
            return
        line = self.model.merged(iteration.decode, iteration.cohort)
        predicted = line.at(iteration.first, iteration.last).host_seconds(iteration.layers)
        graphed = self.model.graphed(iteration.decode, iteration.cohort)
        self.launches.observe(seconds, predicted, graphed)
