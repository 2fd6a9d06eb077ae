"""How waiting prompts become a cohort: chosen by the planner, admitted by SGLang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.schedule_batch import NextBatchPlan, ScheduleBatch

from layered_sglang.hooks.admission import AdmissionGate
from layered_sglang.hooks.cohort import Cohort
from layered_sglang.hooks.views import decode_work, holds_images, unfinished
from layered_sglang.scheduling import Admission

if TYPE_CHECKING:
    from layered_sglang.hooks.cohorts_in_flight import CohortsInFlight
    from layered_sglang.hooks.planner import PlannerInForce
    from layered_sglang.hooks.rank_clock import RankClock

#: SGLang's own admission: a prefill batch of what waits, or none.
SglangsAdmission = Callable[[ScheduleBatch], NextBatchPlan]


class CohortAdmission:
    """Admits prompts to one scheduler's cohorts.

    Args:
        scheduler: whose queue it is.
        cohorts: where a new cohort goes.
        planning: says who is admitted next.
        clock: by which waits are told.
        num_layers: layers of the model.

    Attributes:
        gate: between the planner's choice and SGLang's admission.
    """

    def __init__(
        self,
        scheduler: Any,
        cohorts: CohortsInFlight,
        planning: PlannerInForce,
        clock: RankClock,
        num_layers: int,
    ) -> None:
        self._scheduler = scheduler
        self._cohorts = cohorts
        self._planning = planning
        self._clock = clock
        self._num_layers = num_layers
        self.gate = AdmissionGate(scheduler, planning.estimator)

    def policy_changed(self) -> None:
        """Look at the queue anew, as the server is set by now."""
        self.gate = AdmissionGate(self._scheduler, self._planning.estimator)
        self._cohorts.changed = True

    def admit(self, running_batch: ScheduleBatch, sglangs: SglangsAdmission) -> NextBatchPlan:
        """Admit prompts as a cohort, which no batch holds, or as SGLang's own prefill batch.

        Args:
            running_batch: those that decode.
            sglangs: builds the batch; it alone allocates KV slots.
        """
        nothing = NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        if self._cohorts.in_flight and not self._may_overtake(running_batch):
            self._free_what_the_host_cache_has()
            return nothing
        if not self._cohorts.next_chunk_has_room():
            self._cohorts.give_way_between_chunks(running_batch)
            return nothing
        s = self._scheduler
        # A long prompt between chunks is work to plan, too: its next chunk has to keep the target.
        work = bool(s.waiting_queue) or s.chunked_req is not None
        alone = False
        if self._planning.planner.overtakes and work:
            chosen = self._admit_chosen(running_batch, sglangs)
            if chosen is None:
                self._free_what_the_host_cache_has()
                return nothing
            plan, alone = chosen
        else:
            plan = self._admit(running_batch, sglangs)
        if plan.batch_to_run is not None:
            self._count_pending(plan.batch_to_run)
        if plan.batch_to_run is None or alone or not becomes_cohort(plan):
            return plan
        cohort = Cohort(plan.batch_to_run, self._num_layers, admitted_at=time.monotonic())
        self._cohorts.in_flight.append(cohort)
        s.layered_metrics.count("cohorts")
        s.layered_metrics.count("layered_tokens", cohort.tokens)
        s.layered_metrics.count("chunked_tokens", cohort.chunk_tokens)
        return NextBatchPlan(batch_to_run=None, running_batch=plan.running_batch)

    def _admit_chosen(
        self, running_batch: ScheduleBatch, sglangs: SglangsAdmission
    ) -> tuple[NextBatchPlan, bool] | None:
        """Offer SGLang what the planner chooses, if it chooses anything.

        Returns:
            What SGLang admitted, and whether it is to run alone, as SGLang's own prefill.
        """
        reqs = [running_batch.reqs[i] for i in unfinished(running_batch)]
        view, waiting = self.gate.view(
            running_batch,
            self._cohorts.in_flight,
            decode_work(reqs),
            self._planning.target(reqs),
            self._clock.now,
        )
        self._cohorts.changed = False
        admission = self._planning.planner.admit(view)
        if admission is None:
            return None
        for cohort in self._cohorts.in_flight:
            self._cohorts.finish_loads(cohort)
        with self.gate.offer(admission, waiting):
            plan = self._admit(running_batch, sglangs)
        if admission.overtakes and plan.batch_to_run is not None:
            self._scheduler.layered_metrics.count("overtaking_cohorts")
            for overtaken in self._cohorts.in_flight[:1]:
                overtaken.delayed += admission.delay
        elif admission.overtakes and not self._cohorts.in_flight:
            # Who would go before a long prompt's next chunk finds no KV slots, which the long one
            # may be holding: it goes on.
            admission = Admission((), admission.tokens, continues=True)
            with self.gate.offer(admission, waiting):
                plan = self._admit(running_batch, sglangs)
        return plan, admission.alone

    def _admit(self, running_batch: ScheduleBatch, sglangs: SglangsAdmission) -> NextBatchPlan:
        """SGLang's own admission: of prompts that may be layered, or of such that hold images."""
        with self.gate.one_kind(running_batch):
            return sglangs(running_batch)

    def _count_pending(self, batch: ScheduleBatch) -> None:
        """Tell what SGLang logs of ``batch`` of the whole queue: its admission saw a part of it."""
        s = self._scheduler
        cut = 0 if batch.chunked_req is None else batch.chunked_req.extend_range.length
        batch.prefill_stats.num_pending_tokens = s.load_inquirer._get_num_pending_tokens(cut)

    def _free_what_the_host_cache_has(self) -> None:
        """What SGLang's admission begins with: unlock what was written to the host or loaded."""
        if self._scheduler.enable_hierarchical_cache:
            self._scheduler.tree_cache.check_hicache_events()

    def _may_overtake(self, running_batch: ScheduleBatch) -> bool:
        """Whether to ask the planner for prompts that pass the cohort in flight. Not when nothing has
        changed since it declined, and not when nobody decodes: then the cohort runs to its end."""
        return (
            self._planning.planner.overtakes
            and self._cohorts.changed
            and len(self._cohorts.in_flight) == 1
            and bool(self._scheduler.waiting_queue)
            and bool(unfinished(running_batch))
        )


def becomes_cohort(plan: NextBatchPlan) -> bool:
    """Whether the prefill batch of ``plan`` should advance by layer groups beside decode.

    SGLang's own prefill serves when nobody decodes, when prompts came as embeddings or hold images,
    and when admission left no KV for the next decode step: a cohort would have to restart at once.
    """
    running, batch = plan.running_batch, plan.batch_to_run
    decoding = unfinished(running)
    return (
        bool(decoding)
        and not running.is_prefill_only
        and batch.input_embeds is None
        and batch.replace_embeds is None
        and not any(map(holds_images, batch.reqs))
        and running.check_decode_mem(selected_indices=decoding)
    )
