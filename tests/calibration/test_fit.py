"""The fit finds what made the iterations, through noise and outliers; rows are what the trace says."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
from layered_sglang.calibration.fit import fit, quality
from layered_sglang.calibration.rows import PER_BIN, Row, read_rows, split, thin
from layered_sglang.model_zoo.published import QWEN3_30B_A3B
from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork, ModelShape
from layered_sglang.scheduling.devices import nominal_coefficients

SHAPE = ModelShape.from_config(QWEN3_30B_A3B)
TRUTH = CostModel(
    SHAPE,
    dataclasses.replace(
        nominal_coefficients("H200")[0],
        weight_bandwidth=3.1e12,
        expert_bandwidth=2.9e12,
        expert_flops=2.6e14,
        matmul_flops=4.1e14,
        kv_bandwidth=2.0e12,
        attention_flops=2.5e14,
        layer_seconds=1.9e-5,
        iteration_seconds=9e-4,
        host_iteration=4e-3,
        host_eager_layer=7e-4,
    ),
    graph_rows=2048,
)
START = dataclasses.replace(TRUTH, coefficients=nominal_coefficients("H200")[0])


def grid() -> list[Row]:
    """Iterations of all kinds, timed by TRUTH."""
    rows = []
    for requests in (1, 4, 16, 64, 128):
        for each in (256, 2048, 8192):
            decode = DecodeWork(requests, requests * each)
            rows += [Row("decode", decode, None, 0, 0.0)] * 3
            for tokens in (64, 512, 2048, 8192):
                cohort = CohortWork.of_prompt(tokens)
                rows += [Row("merged", decode, cohort, layers, 0.0) for layers in (1, 6, 24, 48)]
    for tokens in (32, 512, 2048, 8192):
        rows += [Row("prefill", DecodeWork(), CohortWork.of_prompt(tokens), 48, 0.0)] * 3
    return [dataclasses.replace(row, seconds=row.predict(TRUTH)) for row in rows]


def disturbed(rows: list[Row]) -> list[Row]:
    """3% noise, and every twentieth iteration three times as long as it should be."""
    rng = random.Random(1)
    return [
        dataclasses.replace(
            row, seconds=row.seconds * rng.lognormvariate(0, 0.03) * (3 if i % 20 == 7 else 1)
        )
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def fitted() -> CostModel:
    learn, _ = split(disturbed(grid()))
    return dataclasses.replace(START, coefficients=fit(START, learn))


def test_iterations_are_predicted_within_3_percent_in_spite_of_noise_and_outliers(fitted):
    errors = np.abs([row.predict(fitted) / row.seconds - 1 for row in grid()])
    assert np.median(errors) < 0.01 and np.percentile(errors, 95) < 0.03
    before = quality(START, grid())
    assert before["median_error"] > 0.05  # there was something to fit


def test_what_the_rows_do_not_tell_stays_where_it_was():
    decode = [row for row in grid() if row.kind == "decode"]
    coefficients = fit(START, decode)
    assert coefficients.attention_flops == pytest.approx(
        START.coefficients.attention_flops, rel=1e-3
    )


def test_the_quality_is_that_of_the_held_out_iterations(fitted):
    learn, judge = split(disturbed(grid()))
    assert len(judge) == round(0.2 * (len(learn) + len(judge)))
    found = quality(fitted, judge)
    assert found["iterations"] == len(judge)
    assert found["median_error"] < 0.05 and set(found["by_kind"]) == {"decode", "merged", "prefill"}


def line(**fields) -> str:
    record = {"kind": "decode", "decode": ["a", "b"], "decode_context": 700, "cohort": []}
    return json.dumps(record | {"layers": None, "seconds": 0.01, "predicted": None} | fields)


def test_rows_say_what_the_trace_says():
    cohort = [["p", 100, 50], ["q", 0, 20]]
    rows = read_rows(
        [
            line(),
            line(kind="merged", cohort=cohort, layers=[4, 10], seconds=0.02),
            line(kind="cohort", decode=[], decode_context=0, cohort=cohort, layers=[0, 48]),
            line(kind="prefill", cohort=cohort),
        ],
        num_layers=48,
    )
    work = CohortWork.of_prompt(50, 100) + CohortWork.of_prompt(20)
    assert work.tokens == 70
    decode = DecodeWork(2, 700)
    got = [(row.kind, row.decode, row.layers, row.seconds) for row in rows]
    assert got == [
        ("decode", decode, 0, 0.01),
        ("merged", decode, 6, 0.02),
        ("cohort", DecodeWork(0, 0), 48, 0.01),
        ("prefill", DecodeWork(), 48, 0.01),
    ]
    assert rows[0].cohort is None
    for row in rows[1:]:
        assert row.cohort is not None
        assert (row.cohort.tokens, row.cohort.pairs) == (work.tokens, work.pairs)


def test_with_overlap_a_result_waits_for_the_next_launch():
    """10 ms of decode, then an eager layer group whose launch takes longer than that."""
    cohort = [["p", 0, 4000]]
    times = [0.0, 0.002, 0.012, 0.030, 0.9]
    lines = [line(time=t, seconds=0.01) for t in times]
    lines[2] = line(time=times[2], seconds=0.02, kind="merged", cohort=cohort, layers=[0, 24])
    rows = read_rows(lines, 48, overlap=True)
    # The first began from idle; after the last but one there was a pause.
    assert [row.kind for row in rows] == ["decode", "merged"]
    before, merged = rows
    assert before.after is not None and before.after.kind == "merged"
    decode, _ = before.line(TRUTH)
    launch, layers = before.after.line(TRUTH)
    assert launch.host_seconds(layers) > decode.device_seconds()
    assert before.predict(TRUTH) == launch.host_seconds(24)
    # What of the layer group was computed while its launch went on is not in its own time.
    late = launch.host_seconds(24) - decode.device_seconds()
    device = merged.line(TRUTH)[0].device_seconds(24)
    assert merged.predict(TRUTH) == pytest.approx(device - late)
    assert dataclasses.replace(merged, before=None).predict(TRUTH) == device
    # On a CPU the launch is the computation, so a time is that of the iteration after.
    shifted = read_rows(lines, 48, overlap=True, synchronous=True)
    assert [(row.kind, row.seconds) for row in shifted] == [("merged", 0.01), ("decode", 0.02)]


def test_what_was_not_measured_is_left_out():
    lines = [line(seconds=None), line(kind="mixed"), line(seconds=0), line()[:40], line()]
    assert len(read_rows(lines, 48)) == 1


def test_thinning_keeps_every_kind_of_iteration():
    rows = [Row("decode", DecodeWork(1, 700), None, 0, 0.01)] * 5000 + grid()
    kept = thin(rows)
    assert len(kept) < 1000
    assert sum(row.decode == DecodeWork(1, 700) for row in kept) == PER_BIN
    assert {row.kind for row in kept} == {"decode", "merged", "prefill"}
    assert kept == thin(rows)
