"""Searches for the highest rate at which enough requests keep a target, as a scenario has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from layered_sglang.bench.spec.cells import choose_systems, choose_workload, read_repeats
from layered_sglang.bench.spec.located import Located
from layered_sglang.bench.spec.target import Target

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
