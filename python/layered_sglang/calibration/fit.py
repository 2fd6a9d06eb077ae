"""Fits coefficients to measured iterations: least squares on logarithms, robust to outliers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from layered_sglang.calibration.rows import Row
from layered_sglang.scheduling import Coefficients, CostModel

NAMES = tuple(f.name for f in dataclasses.fields(Coefficients))
#: Relative errors beyond this count linearly, not squared.
TOLERANCE = 0.05
#: Weight of staying where the fit began, for coefficients that no row tells: an e-fold away counts as
#: much as one row with an error of this size.
PRIOR = 0.02
#: A coefficient stays within this factor of where it began.
MOST = 1e3


def fit(
    model: CostModel, rows: Sequence[Row], tell: Any = lambda evaluations: None
) -> Coefficients:
    """Coefficients that predict ``rows`` best, beginning at the model's own.

    Args:
        tell: called with the number of evaluations so far.
    """
    from scipy.optimize import least_squares

    begin = np.log([getattr(model.coefficients, name) for name in NAMES])
    measured = np.log([row.seconds for row in rows])
    evaluations = 0

    def residuals(logs: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        tell(evaluations)
        trial = dataclasses.replace(model, coefficients=_coefficients(logs))
        predicted = np.log([row.predict(trial) for row in rows])
        return np.concatenate([predicted - measured, PRIOR * (logs - begin)])

    limit = np.log(MOST)
    logs = begin
    # The robust loss is blind to what is far off, so a plain one brings the start near first.
    for loss, steps in (("linear", 8), ("soft_l1", 40)):
        solution = least_squares(
            residuals,
            logs,
            bounds=(begin - limit, begin + limit),
            loss=loss,
            f_scale=TOLERANCE,
            max_nfev=steps,
        )
        logs = np.clip(solution.x, begin - limit * 0.999, begin + limit * 0.999)
    return _coefficients(logs)


def _coefficients(logs: np.ndarray) -> Coefficients:
    return Coefficients(**dict(zip(NAMES, np.exp(logs).tolist(), strict=True)))


def quality(model: CostModel, rows: Sequence[Row]) -> dict[str, Any]:
    """Relative errors |predicted / measured − 1| over ``rows``, in all and by kind."""

    def errors_of(part: Sequence[Row]) -> dict[str, Any]:
        errors = np.abs([row.predict(model) / row.seconds - 1 for row in part])
        return {
            "iterations": len(part),
            "median_error": round(float(np.median(errors)), 4),
            "p95_error": round(float(np.percentile(errors, 95)), 4),
        }

    by_kind = {
        kind: errors_of([row for row in rows if row.kind == kind])
        for kind in sorted({row.kind for row in rows})
    }
    return {**errors_of(rows), "by_kind": by_kind}
