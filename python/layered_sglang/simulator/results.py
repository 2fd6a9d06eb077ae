"""What came out: latencies, goodput, energy, expert bytes; of one replica or of many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layered_sglang.simulator.gaps import BINS, bin_middles
from layered_sglang.simulator.traffic import Traffic

if TYPE_CHECKING:
    from layered_sglang.simulator.replica import Replica


@dataclass
class Outcome:
    """Per request (float64 [n], seconds, in the traffic's order) and in sum.

    Attributes:
        ttft, e2e: time to the first and to the last token.
        worst: the longest inter-token gap; 0 with one token of output.
        gaps: int64 [BINS], inter-token gaps by length.
        gap_seconds: their sum.
        finished_at: when the last token of all came.
    """

    traffic: Traffic
    ttft: np.ndarray
    e2e: np.ndarray
    worst: np.ndarray
    gaps: np.ndarray
    gap_seconds: float = 0.0
    finished_at: float = 0.0
    busy: float = 0.0
    joules: float = 0.0
    expert_bytes: float = 0.0
    iterations: int = 0
    retractions: int = 0
    computed_tokens: int = 0
    kv_peak: int = 0
    done: int = 0

    @staticmethod
    def empty(traffic: Traffic) -> Outcome:
        ttft, e2e, worst = (np.full(len(traffic), np.nan) for _ in range(3))
        return Outcome(traffic, ttft, e2e, worst, np.zeros(BINS, dtype=np.int64))

    @staticmethod
    def of_replica(replica: Replica, traffic: Traffic) -> Outcome:
        world = replica.world
        return Outcome(
            traffic,
            replica.ttft,
            replica.e2e,
            replica.worst,
            np.array(replica.gaps.histogram, dtype=np.int64),
            replica.gaps.total,
            replica.now,
            world.busy,
            world.joules,
            world.expert_bytes,
            replica.iterations,
            replica.retractions,
            replica.computed_tokens,
            replica.kv_peak,
            len(traffic),
        )

    def add(self, part: Outcome, rows: np.ndarray) -> None:
        """Put a replica's outcome into that of all; ``rows`` are its requests."""
        for name in ("ttft", "e2e", "worst"):
            getattr(self, name)[rows] = getattr(part, name)
        self.gaps += part.gaps
        for name in (
            *("gap_seconds", "busy", "joules", "expert_bytes"),
            *("iterations", "retractions", "computed_tokens", "done"),
        ):
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.finished_at = max(self.finished_at, part.finished_at)
        self.kv_peak = max(self.kv_peak, part.kv_peak)

    def summary(self, ttft_slo: float, itl_slo: float, short: int | None = None) -> dict[str, Any]:
        """The figures of the table. Latencies in milliseconds; limits in seconds.

        ``short``: also the TTFT of prompts under that many tokens, and of the others.
        """
        good = (self.ttft <= ttft_slo) & (self.worst <= itl_slo)
        tokens = int(self.traffic.prompt.sum() + self.traffic.output.sum())
        figures = {
            "requests": len(self.traffic),
            "ttft_ms": _percentiles(self.ttft),
            "itl_ms": self._itl(),
            "e2e_ms": _percentiles(self.e2e),
            "attainment": float(good.mean()),
            "goodput": float(good.sum() / self.finished_at),
            "throughput": float(len(self.traffic) / self.finished_at),
            "joules_per_token": self.joules / tokens,
            "expert_terabytes": self.expert_bytes / 1e12,
            "busy_seconds": self.busy,
            "iterations": self.iterations,
            "retractions": self.retractions,
        }
        if short is not None:
            is_short = self.traffic.prompt < short
            for name, chosen in (("short", is_short), ("long", ~is_short)):
                figures[f"ttft_ms_{name}"] = _percentiles(self.ttft[chosen])
        return figures

    def _itl(self) -> dict[str, float]:
        count = int(self.gaps.sum())
        if count == 0:
            return dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 0.0)
        up_to = np.cumsum(self.gaps)
        middles = bin_middles()
        values = {
            f"p{p}": float(middles[np.searchsorted(up_to, p / 100 * count)] * 1e3)
            for p in (50, 90, 99)
        }
        return {
            "mean": self.gap_seconds / count * 1e3,
            **values,
            "max": float(self.worst.max() * 1e3),
        }


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    if len(seconds) == 0:
        return {}
    values: np.ndarray = np.asarray(np.percentile(seconds, (50, 90, 99))) * 1e3
    return {
        "mean": float(seconds.mean() * 1e3),
        **dict(zip(("p50", "p90", "p99"), values.tolist(), strict=True)),
    }


#: Heading, unit and place in the summary.
COLUMNS = (
    ("TTFT mean", "ms", ("ttft_ms", "mean")),
    ("P50", "ms", ("ttft_ms", "p50")),
    ("P90", "ms", ("ttft_ms", "p90")),
    ("P99", "ms", ("ttft_ms", "p99")),
    ("ITL mean", "ms", ("itl_ms", "mean")),
    ("P50", "ms", ("itl_ms", "p50")),
    ("P90", "ms", ("itl_ms", "p90")),
    ("P99", "ms", ("itl_ms", "p99")),
    ("E2E mean", "ms", ("e2e_ms", "mean")),
    ("P50", "ms", ("e2e_ms", "p50")),
    ("P90", "ms", ("e2e_ms", "p90")),
    ("P99", "ms", ("e2e_ms", "p99")),
    ("within SLO", "%", ("attainment",)),
    ("goodput", "1/s", ("goodput",)),
    ("energy", "mJ/token", ("joules_per_token",)),
    ("experts", "TB", ("expert_terabytes",)),
    ("retracted", "", ("retractions",)),
)
SHORT_COLUMNS = tuple(
    (f"{name} {label}", "ms", (f"ttft_ms_{name}", key))
    for name in ("short", "long")
    for label, key in (("TTFT mean", "mean"), ("P99", "p99"))
)
_SCALES = {"%": 100.0, "mJ/token": 1e3}


def table(summaries: dict[str, dict[str, Any]], short: bool = False) -> str:
    """Metrics down, systems across."""
    rows = [["", "", *summaries]]
    for heading, unit, place in COLUMNS + (SHORT_COLUMNS if short else ()):
        row = [heading, unit]
        for summary in summaries.values():
            value: Any = summary
            for key in place:
                value = value.get(key)
                if value is None:
                    break
            row.append("–" if value is None else _number(value * _SCALES.get(unit, 1.0)))
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
