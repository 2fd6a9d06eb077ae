"""The highest rate at which enough requests keep a target, with few and short runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from layered_sglang.bench.cells import choose_systems, choose_workload, read_repeats
from layered_sglang.bench.client import Row
from layered_sglang.bench.located import Located
from layered_sglang.bench.target import Target

#: Rates that a search chooses from, where the scenario names no step.
RATES = 9


@dataclass(frozen=True)
class Search:
    """Look for the highest rate at which ``attainment`` of the requests keep ``target``.

    Attributes:
        low, high, step: the rates it chooses from, requests per second.
        steps: most runs of a system.
        start: by system, where to look first; without one in the middle.
        only_repeats: the repeats, from 0, in which it is made; None: in all.
    """

    workload: str
    systems: tuple[str, ...]
    target: Target
    low: float
    high: float
    step: float
    attainment: float = 0.9
    steps: int = 5
    start: Mapping[str, float] = field(default_factory=dict)
    only_repeats: tuple[int, ...] | None = None

    def rates(self) -> list[float]:
        """Ascending; ``low`` and at most ``high``."""
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + i * self.step, 6) for i in range(count)]


def read_searches(
    at: Located, systems: Sequence[str], workloads: Sequence[str], targets: Sequence[Target]
) -> tuple[Search, ...]:
    """The scenario's ``search``: one or a list of ``{workload, systems, target, low, high, …}``."""
    return tuple(_read(element, systems, workloads, targets) for element in at.elements())


def _read(
    at: Located, systems: Sequence[str], workloads: Sequence[str], targets: Sequence[Target]
) -> Search:
    number = at.get("target", lambda node: node.count(), 1)
    low, high = at.required("low").positive(), at.required("high").positive()
    if low >= high:
        raise at.error(f"low ({low:g}) must be below high ({high:g})")
    if number > len(targets):
        raise at.error(f"needs targets; target {number} is none of the {len(targets)} there are")
    search = Search(
        choose_workload(at, workloads),
        choose_systems(at, systems),
        targets[number - 1],
        low,
        high,
        at.get("step", Located.positive, (high - low) / (RATES - 1)),
        at.get("attainment", Located.positive, Search.attainment),
        at.get("steps", Located.count, Search.steps),
        at.get("start", lambda node: _read_start(node, systems), {}),
        read_repeats(at),
    )
    at.finish()
    if search.attainment > 1:
        raise at.error(f"attainment is a share of requests, at most 1; got {search.attainment:g}")
    return search


def _read_start(at: Located, systems: Sequence[str]) -> dict[str, float]:
    """A rate for all systems, or ``{system: rate}``."""
    if isinstance(at.value(), dict):
        for name, node in at.items():
            if name not in systems:
                raise node.error(f"no such system; there are: {', '.join(systems)}")
        return {name: node.positive() for name, node in at.items()}
    return dict.fromkeys(systems, at.positive())


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
