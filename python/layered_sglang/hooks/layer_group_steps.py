"""The cohort's part of each iteration: its layer group is planned here, and launched with decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.schedule_batch import NextBatchPlan, Req, ScheduleBatch

from layered_sglang.hooks.cohort import Cohort, LayerGroupStep
from layered_sglang.hooks.first_tokens import relay_first_tokens
from layered_sglang.hooks.iteration_log import log_layer_group
from layered_sglang.hooks.views import batch_decode_work
from layered_sglang.scheduling import CohortView, DecodeWork, LayerGroup

if TYPE_CHECKING:
    from layered_sglang.hooks.cohorts_in_flight import CohortsInFlight
    from layered_sglang.hooks.planner import PlannerInForce


class LayerGroupSteps:
    """Plans and launches the layer groups of one scheduler's cohorts.

    A layer group runs in the same forward as decode. The cohort stays out of SGLang's batches until its
    last one was handed out; with nobody decoding, its own batch runs all that is left as a prefill.

    Args:
        scheduler: SGLang's, with its streams and its worker.
        cohorts: its cohorts; the last one in flight runs.
        planning: chooses the layers.

    Attributes:
        planned: the step of the iteration that was planned and is launched next. Its launch takes it
            (:meth:`take`), so there is none while the next iteration is planned.
    """

    def __init__(self, scheduler: Any, cohorts: CohortsInFlight, planning: PlannerInForce) -> None:
        self._scheduler = scheduler
        self._cohorts = cohorts
        self._planning = planning
        self.planned: LayerGroupStep | None = None

    def describe(self) -> str:
        """How layer groups run, for the start-up banner."""
        return str(self._planning.config.layered_execution)

    # --- planning ---------------------------------------------------------------------------------

    def end_before_decode(self, running_batch: ScheduleBatch) -> NextBatchPlan | None:
        """Asked where no prompt was admitted: whether the cohort that runs ends in this iteration as a
        prefill, instead of decode. Here its last layer group runs with decode, as the others do."""
        return None

    def beside(self, plan: NextBatchPlan) -> NextBatchPlan:
        """Add the next layer group to SGLang's ``plan``, which decodes or does nothing yet."""
        cohort, decode = self._cohorts.in_flight[-1], plan.batch_to_run
        if decode is None:
            # Nobody decodes: SGLang sees an ordinary prefill batch.
            layers = self._choose(self._planning.view(cohort, DecodeWork(), ()))
            assert layers.end == cohort.num_layers, "with nobody decoding, all remaining layers run"
            return self._as_prefill(cohort, layers, plan.running_batch)
        rows = batch_decode_work(decode)
        group = self._beside_decode(cohort, rows, decode.reqs)
        if group is None:
            return plan
        self.planned = step = cohort.advance(group, rows)
        if step.is_last:
            self._cohorts.remove(cohort)
            self._cohorts.launched = cohort
        return plan

    def _beside_decode(
        self, cohort: Cohort, rows: DecodeWork, reqs: Iterable[Req]
    ) -> LayerGroup | None:
        """The layers that ``cohort`` runs in an iteration in which ``reqs`` decode; may be none."""
        return self._choose(self._planning.view(cohort, rows, reqs))

    def _choose(self, view: CohortView) -> LayerGroup:
        return self._planning.planner.next_layer_group(view)

    def _as_prefill(
        self, cohort: Cohort, layers: LayerGroup, running_batch: ScheduleBatch
    ) -> NextBatchPlan:
        """The cohort's own batch runs its last ``layers``; to SGLang it is any prefill batch."""
        step = cohort.advance(layers, DecodeWork())
        self._cohorts.remove(cohort)
        self.planned = step if not step.is_first else None
        return NextBatchPlan(batch_to_run=cohort.batch, running_batch=running_batch)

    # --- launching --------------------------------------------------------------------------------

    def take(self) -> LayerGroupStep | None:
        """The step of the iteration that is launched now, if it has one."""
        step, self.planned = self.planned, None
        return step

    def launch(
        self, step: LayerGroupStep, batch: ScheduleBatch, run_batch: Callable[[], Any]
    ) -> Any:
        """Launch an iteration with ``step`` in it.

        Args:
            step: as taken.
            batch: SGLang's: decode's, or the cohort's own.
            run_batch: SGLang's own launch of ``batch``.

        Returns:
            The result of ``batch``. A cohort that ended beside decode has its first tokens with it, as
            ``cohort_result``.
        """
        s = self._scheduler
        s.layered_metrics.count("layer_groups")
        if not s.enable_lora:
            # Adapters are loaded on the forward stream, or decode might lose its own.
            s.tp_worker.cohort_inputs(step.cohort)
        result = self._forward(step, batch, run_batch)
        if s.metrics_reporter.is_stats_logging_rank:
            log_layer_group(batch, step)
        if batch is not step.cohort.batch and step.is_last:
            result.cohort_result = relay_first_tokens(s, step.cohort, batch, result.cohort_result)
        return result

    def _forward(
        self, step: LayerGroupStep, batch: ScheduleBatch, run_batch: Callable[[], Any]
    ) -> Any:
        """One forward: the worker finds the step on the batch, for as long as SGLang launches it."""
        batch.layer_group_step = step
        try:
            return run_batch()
        finally:
            del batch.layer_group_step
