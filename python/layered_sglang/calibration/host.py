"""How fast does this machine's host launch? Learnt from first layer groups' launches.

A trace tells them, or results that were seen late do: with overlap the host looks for a result when it
has launched the next iteration. Where launching a cohort's first layer group takes longer than the decode
iteration before it runs, that one's measured time is the launch's. It says nothing of the GPU, so a
profile fitted on one machine serves on another with the host's figures replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from layered_sglang.calibration.errors import CalibrationError
from layered_sglang.calibration.rows import Row
from layered_sglang.scheduling import Coefficients, CostModel

#: A result is late if it took this much longer than its GPU time, as a share and in seconds.
LATE, LATE_SECONDS = 1.15, 1e-3
#: Fewer launches than this tell nothing.
LEAST = 12
#: Launches farther off than this, as a share, are stalls: left out of the second fit.
STALL = 0.4


class HostFit(NamedTuple):
    """A machine's host.

    Attributes:
        coefficients: those of the GPU as they were, those of the host as this one launches.
        spread: standard deviation of the logarithm of a launch's time, stalls aside.
    """

    coefficients: Coefficients
    spread: float


def fit_host(model: CostModel, rows: Sequence[Row]) -> HostFit:
    """The host's coefficients that explain the launches among ``rows``, or their late results where no
    launch is told.

    Raises:
        CalibrationError: there are too few.
    """
    told = [(row, row.launch) for row in rows if row.first and row.kind == "merged" and row.launch]
    if not told:
        told = [(row.after, row.seconds) for row in rows if row.after and _waits(model, row)]
    launches = []
    for first, seconds in told:
        assert first.cohort is not None
        graphed = model.graphed(first.decode, first.cohort)
        launches.append((1.0, first.layers * graphed, first.layers * (not graphed), seconds))
    if len(launches) < LEAST:
        raise CalibrationError(
            f"only {len(launches)} launches of first layer groups are told, or longer than the decode "
            f"iteration before them ran; {LEAST} are needed to tell the host's speed"
        )
    table = np.array(launches)
    solution = _robust(table[:, :3], table[:, 3])
    base, graph, eager = solution.tolist()
    c, layers = model.coefficients, model.shape.num_layers
    begun = c.host_iteration + c.host_admission + layers * c.host_decode_layer
    share = max(base, 1e-5) / begun
    decode = share * c.host_decode_layer
    # A kind of layer group that never came late is as much slower as the rest.
    if not table[:, 1].any():
        graph = share * (c.host_graph_layer - c.host_decode_layer)
    if not table[:, 2].any():
        eager = share * (c.host_eager_layer - c.host_decode_layer)
    fitted = dataclasses.replace(
        c,
        host_iteration=share * c.host_iteration,
        host_admission=share * c.host_admission,
        host_decode_layer=decode,
        host_graph_layer=decode + max(graph, 1e-6),
        host_eager_layer=decode + max(eager, 1e-6),
    )
    off = np.log(table[:, 3] / (table[:, :3] @ solution))
    low, high = (float(np.percentile(off, share)) for share in (15.87, 84.13))
    return HostFit(fitted, (high - low) / 2)


def _waits(model: CostModel, row: Row) -> bool:
    """Whether a decode iteration's result waited for the launch of a first layer group."""
    if row.kind != "decode" or row.after is None or not row.after.first:
        return False
    line, _ = row.line(model)
    return row.after.cohort is not None and (
        row.seconds > LATE * line.device_seconds() + LATE_SECONDS
    )


def _robust(table: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Least squares of relative errors, and again without what is far off."""
    kept: np.ndarray = np.ones(len(seconds), dtype=bool)
    solution: np.ndarray = np.zeros(table.shape[1])
    for _ in range(3):
        scaled = table[kept] / seconds[kept, None]
        solution = np.linalg.lstsq(scaled, np.ones(kept.sum()), rcond=None)[0]
        kept = np.abs(table @ solution / seconds - 1) < STALL
    return solution
