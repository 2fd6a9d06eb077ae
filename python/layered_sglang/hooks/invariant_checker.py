"""SGLang's memory checks, told of the cohort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.invariant_checker import SchedulerInvariantChecker
from sglang.srt.managers.scheduler_components.pool_stats_observer import SchedulerPoolStatsObserver
from sglang.srt.utils.common import ceil_align


class CohortAwareInvariantChecker(SchedulerInvariantChecker):
    """Counts the KV that cohort requests hold outside the radix cache.

    SGLang counts the last and the running batch; a cohort in flight is in neither.
    """

    get_cohort_reqs: Callable[[], list[Req]]

    @classmethod
    def extend(
        cls, stock: SchedulerInvariantChecker, get_cohort_reqs: Callable[[], list[Req]]
    ) -> CohortAwareInvariantChecker:
        """The same checker over the same pools, with the cohort's requests added."""
        names = [f.name for f in fields(SchedulerInvariantChecker) if f.init]
        checker = cls(**{name: getattr(stock, name) for name in names})
        checker.get_cohort_reqs = get_cohort_reqs
        return checker

    def _get_total_uncached_sizes(self) -> tuple[int, int]:
        full, swa = super()._get_total_uncached_sizes()
        counted = {
            id(req)
            for batch in (self.get_last_batch(), self.get_running_batch())
            if batch is not None
            for req in batch.reqs
        }
        for req in self.get_cohort_reqs():
            if req.kv is None or id(req) in counted:
                continue
            allocated = ceil_align(req.kv.kv_allocated_len, self.page_size)
            full += allocated - req.cache_protected_len
            if self.is_hybrid_swa:
                swa += allocated - max(req.cache_protected_len, req.kv.swa_evicted_seqlen)
        return full, swa


class CohortAwarePoolStats(SchedulerPoolStatsObserver):
    """Knows that cohort requests own their pool rows (sessions would count them as their own)."""

    get_cohort_reqs: Callable[[], list[Req]]

    @classmethod
    def extend(
        cls, stock: SchedulerPoolStatsObserver, get_cohort_reqs: Callable[[], list[Req]]
    ) -> CohortAwarePoolStats:
        """The same observer over the same pools, with the cohort's requests added."""
        names = [f.name for f in fields(SchedulerPoolStatsObserver) if f.init]
        observer = cls(**{name: getattr(stock, name) for name in names})
        object.__setattr__(observer, "get_cohort_reqs", get_cohort_reqs)
        return observer

    def active_pool_idxs(self) -> set:
        cohort = {r.req_pool_idx for r in self.get_cohort_reqs() if r.req_pool_idx is not None}
        return super().active_pool_idxs() | cohort
