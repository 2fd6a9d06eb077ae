"""overlapped_execution.py's figures: one row a combination, and what they say of partitioning."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

#: What partitioning has to gain over merged rows to be worth its code.
GATE = 0.05
#: Kernels that use all SMs of a partition of this share of the GPU must be that much slower at least.
BARELY_SLOWER = 1.05


@dataclass
class Cell:
    """One decode batch and one cohort.

    Attributes:
        samples: by way, milliseconds until both were done.
        decode_ends: by way, milliseconds until decode was done (of one graph: until both were).
        alone: by way of two graphs, milliseconds of decode alone and of the cohort alone.
    """

    batch: int
    tokens: int
    layers: int
    samples: dict[str, list[float]]
    decode_ends: dict[str, list[float]]
    alone: dict[str, tuple[float, float]]
    problems: list[str]

    def median(self, way: str) -> float:
        return statistics.median(self.samples[way])

    def best_partitioning(self) -> str | None:
        ways = [way for way in self.samples if way.endswith("SMs")]
        return min(ways, key=self.median, default=None)

    def gain(self) -> float | None:
        """What the best partitioning saves of merged's time; negative: it takes longer."""
        best = self.best_partitioning()
        return None if best is None else 1 - self.median(best) / self.median("merged")

    def figures(self) -> dict[str, Any]:
        return {
            "decode": self.batch,
            "cohort": self.tokens,
            "layers": self.layers,
            "ms": {way: spread(values) for way, values in self.samples.items()},
            "decode_done_ms": {way: spread(values) for way, values in self.decode_ends.items()},
            "alone_ms": self.alone,
            "best_partitioning": self.best_partitioning(),
            "gain": self.gain(),
            "problems": self.problems,
        }


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p10": ordered[round(0.1 * (len(ordered) - 1))],
        "p90": ordered[round(0.9 * (len(ordered) - 1))],
    }


WAYS = ("in turn", "merged", "streams")


def print_head(splits: list[str]) -> None:
    print(f"{'decode':>6}{'cohort':>7}{'layers':>7}  "
          + "".join(f"{way:>14}" for way in (*WAYS, *splits))
          + f"{'gain':>8}  ms until both are done, median (half of p90 - p10); gain of the best "
          "partitioning over merged")  # fmt: skip


def print_cell(cell: Cell, splits: list[str]) -> None:
    texts = []
    for way in (*WAYS, *splits):
        if way not in cell.samples:
            texts.append("-")
            continue
        s = spread(cell.samples[way])
        texts.append(f"{s['median']:.2f} ({(s['p90'] - s['p10']) / 2:.2f})")
    gain = cell.gain()
    last = "-" if gain is None else f"{gain:+.1%}"
    print(f"{cell.batch:>6}{cell.tokens:>7}{cell.layers:>7}  "
          + "".join(f"{text:>14}" for text in texts) + f"{last:>8}", flush=True)  # fmt: skip
    best = cell.best_partitioning()
    if best is not None:
        decode, cohort = cell.alone[best]
        print(f"{'':>22}{best}: alone, decode {decode:.2f} and cohort {cohort:.2f} ms; whole GPU "
              f"{cell.alone['streams'][0]:.2f} and {cell.alone['streams'][1]:.2f} ms; decode done "
              f"after {statistics.median(cell.decode_ends[best]):.2f} ms")  # fmt: skip
    for problem in cell.problems:
        print(f"{'':>22}{problem}")


def ineffective(cell: Cell) -> list[str]:
    """Partitions in which neither part is slower than on the whole GPU: they do not take effect."""
    if "streams" not in cell.alone:
        return []
    whole = cell.alone["streams"]
    return [
        way
        for way, alone in cell.alone.items()
        if way.endswith("SMs")
        and all(ms < BARELY_SLOWER * all_ms for ms, all_ms in zip(alone, whole, strict=True))
    ]


def verdict(cells: list[Cell]) -> str:
    """One line or two for people."""
    gains = {(c.batch, c.tokens): g for c in cells if (g := c.gain()) is not None}
    if not gains:
        return "verdict: no partitioning was measured"
    wins = [cell for cell, gain in gains.items() if gain >= GATE]
    best = max(gains, key=lambda cell: gains[cell])
    median = statistics.median(gains.values())
    text = (
        f"verdict: the best partitioning beats merged by {GATE:.0%} or more in {len(wins)} of "
        f"{len(gains)} combinations; gain {median:+.1%} in the median, {gains[best]:+.1%} at most "
        f"(decode {best[0]}, cohort {best[1]})"
    )
    without = sorted(set.intersection(*(set(ineffective(cell)) for cell in cells)))
    if without:  # with every combination
        text += f"\nNOT PARTITIONED: alone, work on {', '.join(without)} is as fast as on all SMs"
    return text
