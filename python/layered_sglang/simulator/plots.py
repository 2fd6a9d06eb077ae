"""Pictures of outcomes; they need matplotlib (``pip install layered-sglang[plots]``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from layered_sglang.simulator.errors import SimulationError
from layered_sglang.simulator.gaps import bin_middles
from layered_sglang.simulator.results import Outcome


def require_matplotlib() -> None:
    """Raises SimulationError before hours of simulation, not after them."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SimulationError(
            "--plot needs matplotlib, which is not installed: pip install 'layered-sglang[plots]'"
        )


def plot(outcomes: dict[str, Outcome], path: Path) -> None:
    """Distributions of TTFT and ITL, a line a system."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for name, outcome in outcomes.items():
        ttft = np.sort(outcome.ttft)
        left.plot(ttft, np.arange(1, len(ttft) + 1) / len(ttft), label=name)
        shares = np.cumsum(outcome.gaps) / max(1, outcome.gaps.sum())
        right.plot(bin_middles() * 1e3, 1 - shares, label=name)
    left.set(xscale="log", xlabel="TTFT, s", ylabel="share of requests below")
    right.set(xscale="log", yscale="log", xlabel="ITL, ms", ylabel="share of gaps above")
    seen = np.flatnonzero(sum(outcome.gaps for outcome in outcomes.values()))
    if len(seen):
        middles = bin_middles() * 1e3
        right.set_xlim(middles[seen[0]] * 0.9, middles[seen[-1]] * 1.1)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
