"""Between the planner's admission and SGLang's: what waits in the planner's words, and its choice
offered to SGLang, which alone allocates KV and builds the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from layered_sglang.hooks.views import holds_images
from layered_sglang.scheduling import (
    WINDOW,
    Admission,
    CohortWork,
    DecodeWork,
    Estimator,
    InFlight,
    QueueView,
    WaitingPrompt,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from layered_sglang.hooks.cohort import Cohort


#: Tokens that pieces of a prompt are multiples of: more than a prompt has.
NEVER_CUT = 1 << 40


class AdmissionGate:
    """Shows the planner one scheduler's queue, and SGLang what the planner chose of it.

    Args:
        scheduler: whose queue it looks at.
        estimator: says what a prompt needs.
    """

    def __init__(self, scheduler: Any, estimator: Estimator) -> None:
        self._scheduler = scheduler
        self._estimator = estimator
        self._page_size = scheduler.page_size
        self._max_tokens = scheduler.chunked_prefill_size
        args = scheduler.server_args
        self._keep_order = args.schedule_policy != "fcfs"
        self._sorts = self._keep_order or scheduler.enable_priority_scheduling
        self._sign = -1 if scheduler.schedule_low_priority_values_first else 1
        self._offering = False
        self._late: list[Req] = []

    # --- what waits -------------------------------------------------------------------------------

    def view(
        self,
        running_batch: Any,
        cohorts: Sequence[Cohort],
        decode: DecodeWork,
        target: float | None,
        now: float,
    ) -> tuple[QueueView, list[Req]]:
        """The planner's view, and the requests that its indices mean."""
        s = self._scheduler
        if self._sorts:
            s.policy.calc_priority(s.waiting_queue, running_batch)
        reqs = s.waiting_queue[:WINDOW]
        in_flight = [self._in_flight(cohort, now) for cohort in cohorts]
        chunked = s.chunked_req
        if chunked is not None and not any(chunked in cohort.reqs for cohort in cohorts):
            in_flight.insert(0, self._between_chunks(chunked, now))
        waiting = [self._waiting(req, now) for req in reqs]
        view = QueueView(waiting, in_flight, decode, self._max_tokens, target, self._keep_order)
        return view, reqs

    def _waiting(self, req: Req, now: float) -> WaitingPrompt:
        known = getattr(req, "layered_prompt", None)
        if known is None:
            self._find_prefix(req)
            prefix = len(req.prefix_indices)
            work = CohortWork.of_prompt(len(req.full_untruncated_fill_ids) - prefix, prefix)
            known = req.layered_prompt = (work, self._estimator.need(work))
        work, need = known
        return WaitingPrompt(work, need, now - req.layered_arrived, self._priority(req))

    def _find_prefix(self, req: Req) -> None:
        """Ask the radix cache what it has of a prompt.

        NOTE: with linear attention SGLang's own asking takes a slot of the pool of states, too: it
        admits the prompt, or gives the slot back. A prompt that is only looked at must take none.
        """
        req.init_next_round_input(self._scheduler.tree_cache, cow_mamba=False)

    def _in_flight(self, cohort: Cohort, now: float) -> InFlight:
        return InFlight(
            cohort.work,
            cohort.num_layers - cohort.next_layer,
            waited=now - min(req.layered_arrived for req in cohort.reqs),
            delayed=cohort.delayed,
            priority=max(map(self._priority, cohort.reqs)),
        )

    def _between_chunks(self, req: Req, now: float) -> InFlight:
        done = len(req.prefix_indices)
        left = len(req.origin_input_ids) + len(req.output_ids) - done
        return InFlight(
            CohortWork.of_prompt(left, done),
            self._estimator.num_layers,
            waited=now - req.layered_arrived,
            priority=self._priority(req),
            between_chunks=True,
        )

    def _priority(self, req: Req) -> int:
        return 0 if req.priority is None else self._sign * req.priority

    # --- the planner's choice, offered to SGLang --------------------------------------------------

    @contextmanager
    def offer(self, admission: Admission, reqs: list[Req]) -> Iterator[None]:
        """Within it SGLang's admission sees what the planner chose, and nothing else.

        What it does not admit, and what is queued meanwhile, is back in the queue afterwards.
        """
        s = self._scheduler
        if admission.prompts is None:
            yield
            return
        queue, size, chunked = s.waiting_queue, s.chunked_prefill_size, s.chunked_req
        align = s.truncation_align_size
        chosen = [reqs[i] for i in admission.prompts]
        s.chunked_prefill_size = admission.tokens - admission.tokens % self._page_size
        if admission.overtakes:
            # SGLang cuts a prompt when the pool of its windows is short, too: not into pieces like this.
            s.chunked_req, s.truncation_align_size = None, NEVER_CUT
            chosen = self._uncut(chosen, s.chunked_prefill_size)
        s.waiting_queue, self._offering = list(chosen), True
        try:
            yield
        finally:
            left = set(map(id, s.waiting_queue))
            admitted = {id(req) for req in chosen if id(req) not in left}
            s.waiting_queue = [req for req in queue if id(req) not in admitted] + self._late
            s.chunked_prefill_size, self._offering, self._late = size, False, []
            if admission.overtakes:
                assert s.chunked_req is None, "an overtaking prompt was cut"
                s.chunked_req, s.truncation_align_size = chunked, align

    @contextmanager
    def one_kind(self, running_batch: Any) -> Iterator[None]:
        """Within it SGLang's admission sees only prompts with images, or only those without, whichever
        kind is first: together in a batch they would all be SGLang's own to prefill."""
        s = self._scheduler
        queue = s.waiting_queue
        if not s.model_config.is_multimodal or not any(map(holds_images, queue)):
            yield
            return
        if self._sorts:
            s.policy.calc_priority(queue, running_batch)
        kind = holds_images(queue[0] if s.chunked_req is None else s.chunked_req)
        s.waiting_queue = shown = [req for req in queue if holds_images(req) is kind]
        before = set(map(id, shown))
        try:
            yield
        finally:
            left = {id(req): req for req in s.waiting_queue}
            s.waiting_queue = [req for req in queue if id(req) not in before or id(req) in left]
            s.waiting_queue += [req for key, req in left.items() if key not in before]

    def queued(self, req: Req) -> None:
        """``req`` was just put at the end of SGLang's queue."""
        if self._offering:
            self._late.append(self._scheduler.waiting_queue.pop())

    def _uncut(self, reqs: list[Req], tokens: int) -> list[Req]:
        """The first of ``reqs`` that fit uncut, now that the cache is as admission will find it.

        NOTE: the cohort in flight may hold a chunk of a long prompt; there must be no second such prompt.
        """
        fit = []
        for req in reqs:
            self._find_prefix(req)
            new = len(req.full_untruncated_fill_ids) - len(req.prefix_indices)
            tokens -= -(-new // self._page_size) * self._page_size
            if tokens < 0:
                break
            fit.append(req)
        return fit
