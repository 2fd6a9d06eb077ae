"""Cells: which system is measured under which workload at which rate, most important first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from layered_sglang.bench.spec.located import Located


class Point(NamedTuple):
    """A workload at a rate: what systems are compared at.

    Attributes:
        workload: its name; empty where the scenario has one without.
        rate: requests per second, or None for the workload's own arrivals.
    """

    workload: str
    rate: float | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Point:
        """The point of a stored row, run or summary."""
        return cls(record["workload"], record["rate"])

    @property
    def title(self) -> str:
        """``arxiv at 2 requests/s``, or what of it there is."""
        return f"{self.workload} {self.at}".strip()

    @property
    def short(self) -> str:
        """``arxiv 2/s``."""
        return f"{self.workload} {'' if self.rate is None else f'{self.rate:g}/s'}".strip()

    @property
    def at(self) -> str:
        return "" if self.rate is None else f"at {self.rate:g} requests/s"

    @property
    def suffix(self) -> str:
        """For names of files: ``-arxiv-2``."""
        name = f"-{self.workload}" if self.workload else ""
        return name if self.rate is None else f"{name}-{self.rate:g}"


@dataclass(frozen=True)
class Cell:
    """What a run measures.

    Attributes:
        only_repeats: the repeats, from 0, in which it is run; None: in all.
    """

    system: str
    workload: str
    rate: float | None
    only_repeats: tuple[int, ...] | None = field(default=None, compare=False)

    @property
    def point(self) -> Point:
        return Point(self.workload, self.rate)


def read_cells(at: Located, systems: Sequence[str], workloads: Sequence[str]) -> tuple[Cell, ...]:
    """The scenario's ``cells``: a list of ``{workload, rates, systems, only_repeats}``.

    ``workload`` may be left out where there is one, ``rates`` for the workload's own, ``systems`` for
    all of them. A cell that is listed twice counts where it is first.
    """
    cells: dict[Cell, None] = {}
    for element in at.elements():
        workload = choose_workload(element, workloads)
        rates: tuple[float | None, ...] = element.get("rates", read_rates, (None,))
        chosen = choose_systems(element, systems)
        only = read_repeats(element)
        element.finish()
        for cell in (Cell(s, workload, rate, only) for rate in rates for s in chosen):
            cells.setdefault(cell)
    return tuple(cells)


def choose_workload(at: Located, workloads: Sequence[str]) -> str:
    """The key ``workload``: one of those there are."""
    if len(workloads) == 1:
        return at.get("workload", lambda node: node.choice(workloads), workloads[0])
    return at.required("workload").choice(workloads)


def choose_systems(at: Located, systems: Sequence[str]) -> tuple[str, ...]:
    """The key ``systems``: some of those there are, or all."""

    def read(node: Located) -> tuple[str, ...]:
        return tuple(element.choice(systems) for element in node.elements())

    return at.get("systems", read, tuple(systems))


def read_repeats(at: Located) -> tuple[int, ...] | None:
    """The key ``only_repeats``: the first is 1; None where it is absent."""

    def read(node: Located) -> tuple[int, ...]:
        return tuple(element.count() - 1 for element in node.elements())

    return at.get("only_repeats", read, None)


def in_repeat(only: tuple[int, ...] | None, repeat: int) -> bool:
    """Whether what is run in ``only`` these repeats is run in this one."""
    return only is None or repeat in only


def read_rates(at: Located) -> tuple[float, ...]:
    return tuple(element.positive() for element in at.elements())
