"""A picture as data; ``svg`` and ``png`` draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Okabe and Ito's colours, told apart by the colour-blind too; black is for text.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#8c6d31", "#666666"),
)


@dataclass(frozen=True)
class Series:
    """A line through points, in one colour.

    Attributes:
        points: (x, y).
        colour: index into PALETTE.
        marked: a dot at each point, with its label.
        labels: of the points, shown beside a dot.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    marked: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Box:
    """A filled rectangle, with what is known of it."""

    x0: float
    x1: float
    y0: float
    y1: float
    colour: int
    text: str = ""
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture.

    Attributes:
        name: of its file.
        note: a sentence below it.
        x_log: powers of ten at even distances.
        x_ticks: (place, text) in the place of numbers, for bars.
        y_from_zero: the axis starts at 0 (never with points below).
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = ()
    boxes: Sequence[Box] = ()
    legend: Sequence[tuple[str, int]] = ()
    note: str = ""
    x_log: bool = False
    x_ticks: Sequence[tuple[float, str]] = field(default_factory=tuple)
    y_from_zero: bool = True

    def bounds(self) -> tuple[float, float, float, float]:
        """x from, x to, y from, y to."""
        xs = [x for s in self.series for x, _ in s.points]
        xs += [x for box in self.boxes for x in (box.x0, box.x1)]
        ys = [y for s in self.series for _, y in s.points]
        ys += [y for box in self.boxes for y in (box.y0, box.y1)]
        low_x, high_x = min(xs), max(xs)
        low_y = min(0.0, *ys) if self.y_from_zero else min(ys)
        high_y = max(ys)
        if not self.boxes and any(s.marked for s in self.series):
            low_x = 0.0 if not self.x_log else low_x / 1.3
            high_x, high_y = high_x * 1.15, high_y * 1.1
        if self.x_ticks:  # bars
            low_x, high_x, high_y = math.floor(low_x), math.ceil(high_x), high_y * 1.05
        if high_x <= low_x:
            low_x, high_x = low_x * 0.9, low_x * 1.1 or 1.0
        if high_y <= low_y:
            high_y = low_y + 1.0
        return low_x, high_x, low_y, high_y

    def names(self) -> list[tuple[str, int]]:
        """The legend: what each colour stands for."""
        return [(s.name, s.colour) for s in self.series] + list(self.legend)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers within [low, high], about ``count``."""
    span = high - low
    step = 10 ** math.floor(math.log10(span / count))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= count:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [f * 10.0**p for p in powers for f in (1, 2, 5) if low <= f * 10.0**p <= high]
    return found if len(found) < 9 else [t for t in found if f"{t:e}"[0] == "1"]


def number(value: float) -> str:
    """A tick's text."""
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.2e}"
