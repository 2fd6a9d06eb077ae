"""SGLang's reports of its load, told of the cohorts.

Balancers of replicas, routers and dashboards read them. SGLang counts its running batch and its queue;
for as many iterations as a cohort has layer groups its requests are in neither.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from sglang.srt.managers.load_snapshot import LoadSnapshot
from sglang.srt.managers.scheduler_components.load_inquirer import SchedulerLoadInquirer
from sglang.srt.managers.scheduler_components.metrics_reporter import SchedulerMetricsReporter
from sglang.srt.observability.metrics_collector import QueueCount

if TYPE_CHECKING:
    from layered_sglang.hooks.cohorts_in_flight import CohortsInFlight


class CohortAwareLoads(SchedulerLoadInquirer):
    """What ``/v1/loads`` and SGLang's balancer between replicas are told."""

    cohorts: CohortsInFlight

    @classmethod
    def extend(cls, stock: SchedulerLoadInquirer, cohorts: CohortsInFlight) -> CohortAwareLoads:
        """The same reports, with the requests of ``cohorts`` added."""
        names = [f.name for f in fields(SchedulerLoadInquirer) if f.init]
        inquirer = cls(**{name: getattr(stock, name) for name in names})
        object.__setattr__(inquirer, "cohorts", cohorts)
        return inquirer

    def get_num_waiting_uncached_tokens(self) -> int:
        """With the prompt tokens that cohorts have still to compute, in tokens through all layers."""
        tokens: int = super().get_num_waiting_uncached_tokens()
        # SGLang counts what is left of a long prompt itself.
        return tokens + self.cohorts.tokens_left(besides=self.get_chunked_req())

    def get_loads(self) -> LoadSnapshot:
        """With cohorts among the running: like these they hold KV slots and places of the batch."""
        loads = super().get_loads()
        loads.num_running_reqs += len(self.cohorts.outside(self.get_running_batch()))
        return loads


class CohortAwareMetricsReporter(SchedulerMetricsReporter):
    """Counts cohorts in ``sglang:num_running_reqs``.

    Attributes:
        cohorts: set once the reporter is made.
    """

    cohorts: CohortsInFlight

    def _calculate_utilization(self) -> None:
        """Asked right before gauges are set.

        A prefill batch says how many ran when it was admitted; a cohort reports many iterations later.
        """
        s = self.scheduler
        running = s.running_batch
        self.stats.num_running_reqs = QueueCount.from_reqs(
            [*running.reqs, *self.cohorts.outside(running)], s.enable_priority_scheduling
        )
        super()._calculate_utilization()
