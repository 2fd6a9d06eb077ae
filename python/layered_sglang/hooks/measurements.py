"""From an iteration's launch to what its time teaches the planner, on every rank alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layered_sglang.hooks.iteration_log import IterationLog, LaunchedIteration, iteration_kind
from layered_sglang.hooks.views import batch_decode_work
from layered_sglang.scheduling import DecodeWork, Lessons

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from layered_sglang.hooks.cohort import LayerGroupStep
    from layered_sglang.hooks.planner import PlannerInForce
    from layered_sglang.hooks.rank_clock import RankClock
    from layered_sglang.telemetry.metrics import LayeredMetrics
    from layered_sglang.telemetry.trace import IterationTrace


class Measurements:
    """Times one scheduler's iterations and lets the estimator learn from them.

    An iteration is launched, its result is processed (with overlap after the next launch), and rank 0's
    time for it arrives with a later tick: until then it is among those not measured yet, on every rank.

    Args:
        planning: predicts iterations, and its estimator learns.
        clock: takes rank 0's measurements to all ranks.
        metrics: counts iterations.
        trace: gets a line an iteration.
        rank0: whether this is the rank whose times count.
        on_gpu: on a CPU a launch is the whole computation, and no time of its own.
    """

    def __init__(
        self,
        planning: PlannerInForce,
        clock: RankClock,
        metrics: LayeredMetrics,
        trace: IterationTrace,
        rank0: bool,
        on_gpu: bool,
    ) -> None:
        self._planning = planning
        self._clock = clock
        self._metrics = metrics
        self._log = IterationLog(trace)
        self._rank0 = rank0
        self._on_gpu = on_gpu
        self._lessons = Lessons(planning.estimator)
        self._unmeasured: dict[int, LaunchedIteration] = {}

    @property
    def pending(self) -> bool:
        """Whether some iteration's time has not been told yet."""
        return bool(self._unmeasured)

    def launch(
        self, number: int, batch: ScheduleBatch, step: LayerGroupStep | None
    ) -> LaunchedIteration:
        """Iteration ``number`` is launched now: ``batch``, and ``step`` beside or in it."""
        kind = iteration_kind(batch, step)
        self._metrics.count_iteration(kind)
        planner = self._planning.planner
        predicted, cohort, layers, first, last = None, None, 0.0, False, False
        if step is not None:
            decode, cohort = step.decode, step.cohort.work
            first, last = step.is_first, step.is_last
            layers = planner.mean_layers(decode, cohort, step.layers)
        else:
            decode = batch_decode_work(batch) if kind == "decode" else DecodeWork()
        if self._log.trace.enabled and decode.requests:
            predicted = planner.predict(decode, cohort, layers, first, last)
        launched = self._log.launch(number, kind, batch, step, decode, layers, predicted)
        self._unmeasured[launched.number] = launched
        return launched

    def launched(self, launched: LaunchedIteration) -> None:
        """The host is through with launching it."""
        self._log.launched(launched)

    def finish(self, launched: LaunchedIteration) -> None:
        """Its result is there."""
        seconds = self._log.finish(launched)
        if self._rank0:
            launch = launched.launch if self._on_gpu else 0.0
            self._clock.measured(launched.number, seconds, launch)

    def learn(self, measured: list[tuple[int, float, float]]) -> None:
        """Rank 0's times arrived: (number, seconds, seconds of its launch or 0) each."""
        for number, seconds, launch in measured:
            launched = self._unmeasured.pop(number, None)
            if launched is None or launched.kind not in ("decode", "merged"):
                self._lessons.forget()
                continue
            if launch > 0:
                self._planning.estimator.observe_launch(launched.work, launch)
            following = self._unmeasured.get(number + 1)
            long_launch = following is not None and following.launches_long
            self._lessons.measured(launched.work, seconds, long_launch)
