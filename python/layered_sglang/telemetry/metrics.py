"""Prometheus counters beside SGLang's own, on the same ``/metrics`` page."""

from __future__ import annotations

from typing import Any

PREFIX = "layered_sglang:"

COUNTERS = {
    "cohorts": "Cohorts of prompts admitted to run by layer groups.",
    "layer_groups": "Layer groups launched.",
    "layered_tokens": "Prompt tokens admitted in cohorts.",
    "chunked_tokens": "Prompt tokens admitted as part of a prompt that was cut into chunks.",
    "overtaking_cohorts": "Cohorts of short prompts that ran before longer ones in flight.",
    "aborted_cohorts": "Cohorts dropped half-way because all their requests were aborted.",
    "restarted_cohorts": "Cohorts dropped half-way because the KV pool ran out, the weights changed or "
    "generation was paused; their requests were queued again.",
}
ITERATIONS = (
    "Iterations by kind: decode, prefill (SGLang's own), merged (decode and a layer group), "
    "cohort (a layer group alone)."
)


class LayeredMetrics:
    """Counts on one scheduler rank, or does nothing.

    Args:
        enabled: whether this rank reports metrics (``--enable-metrics``).
        labels: SGLang's label values for this scheduler.
    """

    def __init__(self, enabled: bool, labels: dict[str, Any]) -> None:
        self._counters: dict[str, Any] = {}
        self._iterations: Any = None
        if not enabled:
            return
        # Imported late: SGLang sets the multi-process folder before the first import counts.
        from prometheus_client import Counter

        names = list(labels)
        for name, text in COUNTERS.items():
            self._counters[name] = Counter(PREFIX + name, text, names).labels(**labels)
        by_kind = Counter(PREFIX + "iterations", ITERATIONS, [*names, "kind"])
        self._iterations = {
            kind: by_kind.labels(**labels, kind=kind)
            for kind in ("decode", "prefill", "merged", "cohort")
        }

    def count(self, name: str, amount: int = 1) -> None:
        """Add ``amount`` to the counter ``name``, one of :data:`COUNTERS`."""
        if self._counters:
            self._counters[name].inc(amount)

    def count_iteration(self, kind: str) -> None:
        if self._iterations:
            self._iterations[kind].inc()
