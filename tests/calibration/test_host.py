"""The host's launch times, learnt from results that came late."""

from __future__ import annotations

import dataclasses
import random

import pytest
from layered_sglang.calibration.errors import CalibrationError
from layered_sglang.calibration.host import LEAST, fit_host
from layered_sglang.calibration.rows import Row
from layered_sglang.model_zoo.published import QWEN3_30B_A3B
from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork, ModelShape
from layered_sglang.scheduling.devices import nominal_coefficients

SHAPE = ModelShape.from_config(QWEN3_30B_A3B)
START = CostModel(SHAPE, nominal_coefficients("H200")[0], graph_rows=4096)
DECODE = DecodeWork(4, 8000)
EAGER, GRAPHS = CohortWork.of_prompt(8000), CohortWork.of_prompt(2000)


def a_host(base: float, graph: float, eager: float) -> CostModel:
    c = START.coefficients
    return dataclasses.replace(
        START,
        coefficients=dataclasses.replace(
            c,
            host_iteration=base * c.host_iteration,
            host_admission=base * c.host_admission,
            host_decode_layer=base * c.host_decode_layer,
            host_graph_layer=graph * c.host_graph_layer,
            host_eager_layer=eager * c.host_eager_layer,
        ),
    )


def rows(host: CostModel, cohorts, spread: float = 0.0, stalls: int = 0) -> list[Row]:
    """Decode iterations before first layer groups, each as long as it ran or as the launch took."""
    rng = random.Random(1)
    told = []
    for cohort in cohorts:
        for i in range(60):
            group = Row("merged", DECODE, cohort, 4 + (i * 7) % 45, 0.1, first=True)
            line, layers = group.line(host)
            seconds = line.host_seconds(layers) * rng.lognormvariate(0, spread)
            if i < stalls:
                seconds += 0.4
            told.append(
                Row(
                    *("decode", DECODE, None, 0),
                    seconds=max(seconds, host.decode(DECODE).device_seconds()),
                    after=group,
                )
            )
    return told


@pytest.mark.parametrize("truth", [(1.0, 1.0, 1.0), (1.9, 2.2, 1.1), (0.7, 0.6, 0.8)])
def test_a_host_s_launches_are_told_from_late_results(truth):
    host = a_host(*truth)
    fit = fit_host(START, rows(host, [EAGER, GRAPHS], stalls=4))
    fitted = dataclasses.replace(START, coefficients=fit.coefficients)
    for cohort in (EAGER, GRAPHS):
        line, true = (m.merged(DECODE, cohort).at(True, False) for m in (fitted, host))
        assert line.host_seconds(40) == pytest.approx(true.host_seconds(40), rel=0.03)
        assert line.device_seconds(40) == START.merged(DECODE, cohort).device_seconds(40)


def test_launches_that_a_trace_tells_are_taken_as_they_are():
    """Also the short ones, which no late result shows."""
    host = a_host(0.5, 0.5, 0.5)
    told = []
    for row in rows(host, [EAGER, GRAPHS]):
        line, layers = row.after.line(host)
        told += [row, dataclasses.replace(row.after, launch=line.host_seconds(layers))]
    fit = fit_host(START, told)
    for name in ("host_admission", "host_graph_layer", "host_eager_layer"):
        half = getattr(START.coefficients, name) / 2
        assert getattr(fit.coefficients, name) == pytest.approx(half, rel=0.02)
    assert fit.spread < 0.01


def test_how_much_launches_spread_is_told_apart_from_stalls():
    fit = fit_host(START, rows(START, [EAGER], spread=0.1, stalls=3))
    assert fit.spread == pytest.approx(0.1, rel=0.4)


def test_a_kind_that_never_came_late_is_as_much_slower_as_the_rest():
    fit = fit_host(START, rows(a_host(2.0, 1.0, 2.0), [EAGER]))
    ratio = fit.coefficients.host_graph_layer / START.coefficients.host_graph_layer
    assert ratio == pytest.approx(2.0, rel=0.05)


def test_too_few_late_results_tell_nothing():
    late = [row for row in rows(START, [EAGER]) if row.after.layers > 30][: LEAST - 1]
    with pytest.raises(CalibrationError, match=f"only {LEAST - 1} launches of first layer"):
        fit_host(START, late)
