"""The highest rate at which enough requests keep a target, with few and short runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layered_sglang.bench.running.client import Row
from layered_sglang.bench.spec.search import Search


def search_rate(search: Search, system: str, keeps: Callable[[float], bool]) -> float | None:
    """Look from ``start`` up or down with growing steps until the answer turns, then halve.

    Args:
        keeps: runs at a rate; whether enough of its requests keep the target.

    Returns:
        The highest rate tried that kept it, or None if none did. With a good start three runs tell it.
    """
    rates = search.rates()
    start = search.start.get(system, rates[(len(rates) - 1) // 2])
    # Rates up to ``good`` keep the target, those from ``bad`` on do not, as far as is known.
    good, bad, stride = -1, len(rates), 1
    at = min(range(len(rates)), key=lambda i: abs(rates[i] - start))
    for _ in range(search.steps):
        if keeps(rates[at]):
            good = at
        else:
            bad = at
        if bad - good == 1:
            break
        if good < 0 or bad == len(rates):
            at = max(0, bad - stride) if good < 0 else min(len(rates) - 1, good + stride)
            stride *= 2
        else:
            at = (good + bad) // 2
    return None if good < 0 else rates[good]


class Verdict:
    """Whether enough of a run's requests keep a target: known before the last of them is answered.

    Args:
        rows: of the run, as they fill in.
    """

    def __init__(self, search: Search, rows: Sequence[Row]) -> None:
        self._target, self._rows = search.target, rows
        # One part in a thousand million: 0.9 of 10 requests are 9 of them.
        self._needed = search.attainment * len(rows) - 1e-9
        self._lost: set[int] = set()
        self._kept: set[int] = set()

    def finished(self, row: Row) -> None:
        """An answer is complete or has failed."""
        (self._lost if row.error or self._misses(row) else self._kept).add(row.index)

    def look(self, seconds: float) -> bool | None:
        """The answer after ``seconds`` of the run; None: not yet known."""
        for row in self._rows:
            waits = row.ttft_s is None and seconds - row.arrival > self._target.ttft_s
            if row.index not in self._kept and (waits or self._misses(row)):
                self._lost.add(row.index)
        if len(self._kept) >= self._needed:
            return True
        return False if len(self._rows) - len(self._lost) < self._needed else None

    def _misses(self, row: Row) -> bool:
        late = row.ttft_s is not None and row.ttft_s > self._target.ttft_s
        return late or max(row.itls_s, default=0.0) * 1000 > self._target.itl_ms
