"""The cost model: monotone, its inverse exact, its limits the rooflines'."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layered_sglang.model_zoo import find_preset
from layered_sglang.model_zoo.published import QWEN3_30B_A3B
from layered_sglang.scheduling import (
    CohortView,
    CohortWork,
    CostModel,
    DecodeWork,
    Estimator,
    Iteration,
    IterationTime,
    ModelShape,
    slo_planner,
)
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.scheduling.model_shape import SPREAD_RANDOM
from worlds import MOE, decodes, estimator, estimators, works

slopes = st.just(0.0) | st.floats(1e-7, 0.1)
lines = st.builds(
    IterationTime,
    device=st.floats(0, 1),
    device_per_layer=slopes,
    host=st.floats(0, 1),
    host_per_layer=slopes,
    overlap=st.booleans(),
)


@given(estimators, works, decodes, st.integers(0, 47))
def test_more_layers_never_take_less(est, work, decode, layers):
    line = est.merged(decode, work)
    assert line.seconds(layers + 1) >= line.seconds(layers)


@given(estimators, works, decodes, st.integers(1, 4096), st.integers(0, 48))
def test_more_prompt_tokens_never_take_less_gpu_time(est, work, decode, more, layers):
    line = est.model.merged(decode, work)
    longer = est.model.merged(decode, work + CohortWork.of_prompt(more))
    assert longer.device + layers * longer.device_per_layer >= (
        line.device + layers * line.device_per_layer
    ) * (1 - 1e-12)


@given(estimators, decodes, st.integers(1, 64), st.integers(0, 100_000))
def test_more_running_requests_or_context_never_take_less(est, decode, requests, context):
    more = DecodeWork(decode.requests + requests, decode.context + context)
    assert est.decode(more) >= est.decode(decode) * (1 - 1e-12)


@given(estimators, st.lists(st.tuples(works, decodes), min_size=2, max_size=30))
def test_what_it_remembers_changes_no_answer(est, asked):
    """Lines, and what of them depends on rows alone: a fresh model says the same."""
    for work, decode in [*asked, *asked[::-1]]:
        fresh = dataclasses.replace(est.model)
        assert est.model.merged(decode, work) == fresh.merged(decode, work)
        assert est.model.decode(decode) == fresh.decode(decode)
        assert est.model.prefill(work) == fresh.prefill(work)


@given(lines, st.floats(0, 10))
def test_layers_within_is_the_inverse_of_seconds(line, seconds):
    layers = line.layers_within(seconds)
    assert layers >= 0
    if layers > 0:
        assert line.seconds(layers) <= seconds * (1 + 1e-9)
    if layers < 1_000_000:
        assert line.seconds(layers + 1) > seconds * (1 - 1e-9)


steep = st.floats(1e-6, 0.1)
bases = st.floats(0, 1)


@given(
    st.builds(IterationTime, bases, steep, bases, steep, st.booleans()),
    st.integers(0, 1000),
)
def test_what_takes_a_time_fits_into_it(line, layers):
    assert line.layers_within(line.seconds(layers) * (1 + 1e-9)) >= layers


@pytest.mark.parametrize("rows, spread, share", [(32, None, 0.52), (32, SPREAD_RANDOM, 0.87)])
def test_experts_reached_as_published(rows, spread, share):
    shape = MOE if spread is None else dataclasses.replace(MOE, spread=spread)
    assert shape.experts_reached(rows) / 128 == pytest.approx(share, abs=0.01)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_experts_reached_grows_to_all_and_starts_at_the_top_k(one, other):
    less, more = sorted((one, other))
    assert 0 <= MOE.experts_reached(less) <= MOE.experts_reached(more) <= 128
    assert MOE.experts_reached(1) == pytest.approx(8)


def test_few_rows_are_bound_by_bytes_and_many_by_multiplications():
    coefficients, _ = nominal_coefficients("H200")
    bare = dataclasses.replace(
        coefficients, layer_seconds=1e-15, row_seconds=1e-18, iteration_seconds=1e-12
    )
    model = CostModel(MOE, bare)
    one = model.decode(DecodeWork(1, 0)).device
    weights = 48 * (MOE.dense_params / bare.weight_bandwidth)
    weights += 48 * 8 * MOE.expert_params / bare.expert_bandwidth
    weights += MOE.head_params / bare.weight_bandwidth
    assert one == pytest.approx(2 * weights, rel=0.01)
    tokens = 1_000_000
    per_row = MOE.dense_params / bare.matmul_flops + 8 * MOE.expert_params / bare.expert_flops
    line = model.merged(DecodeWork(), CohortWork(tokens, 0.0))
    assert line.device_per_layer == pytest.approx(2 * tokens * per_row, rel=0.01)


def test_near_the_ridge_both_bounds_count():
    model = estimator("H200").model
    seconds = {
        rows: model.merged(DecodeWork(), CohortWork(rows, 0.0)).device_per_layer
        for rows in (64, 2048, 4096, 8192)
    }
    assert seconds[64] < seconds[2048] < 2 * seconds[64] + 2048 * 5e-7
    assert seconds[8192] < 2 * seconds[4096]


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_coefficient_is_named(value):
    coefficients, _ = nominal_coefficients("H200")
    with pytest.raises(ValueError, match="coefficient kv_bandwidth must be a positive number"):
        dataclasses.replace(coefficients, kv_bandwidth=value)


def test_the_shape_of_a_published_model():
    shape = ModelShape.from_config(QWEN3_30B_A3B)
    total = 48 * (shape.dense_params + 128 * shape.expert_params) + shape.head_params
    assert total == pytest.approx(30.2e9, rel=0.01)  # 30.5e9 with the embedding
    half = ModelShape.from_config(QWEN3_30B_A3B, tp_size=2)
    assert half.expert_params == shape.expert_params / 2


def test_a_config_without_a_size_is_refused_by_its_name():
    config = {k: v for k, v in QWEN3_30B_A3B.items() if k != "hidden_size"}
    with pytest.raises(ValueError, match="the model's config has no hidden_size"):
        ModelShape.from_config(config)


@pytest.mark.parametrize(
    "name, sheet",
    [("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H20", "H20")],
)
def test_nominal_coefficients_go_by_the_gpus_name(name, sheet):
    assert nominal_coefficients(name)[1] == sheet
    assert nominal_coefficients("a GPU of next year")[1] == "an unknown GPU"
    assert nominal_coefficients(None)[1] == "a CPU"


def test_layers_of_latent_attention_take_the_host_longer():
    shape = ModelShape.from_config(find_preset("deepseek-v2-lite").config)
    model = CostModel(shape, nominal_coefficients("H200", latent=True)[0], graph_rows=4096)
    plain = CostModel(shape, nominal_coefficients("H200")[0], graph_rows=4096)
    decode, few = DecodeWork(5, 20000), CohortWork.of_prompt(100)
    eager = dataclasses.replace(model, graph_rows=0).merged(decode, few).seconds(shape.num_layers)
    assert eager > 1.8e-3 * shape.num_layers
    graphed = [m.merged(decode, few).seconds(shape.num_layers) for m in (model, plain)]
    assert eager > graphed[0] > 3.2e-4 * shape.num_layers
    assert graphed[0] >= graphed[1]


def test_a_batch_between_two_captured_sizes_costs_what_the_larger_one_does():
    model = dataclasses.replace(estimator("H200", MOE).model, decode_sizes=(1, 2, 4, 8))
    cohort = CohortWork.of_prompt(2048)
    five, eight = DecodeWork(5, 9000), DecodeWork(8, 9000)
    assert model.decode(five) == model.decode(eight)
    assert model.merged(five, cohort) == model.merged(eight, cohort)
    assert model.decode(DecodeWork(4, 9000)).seconds() < model.decode(five).seconds()
    assert model.decode(DecodeWork()).seconds() == 0


def test_a_batch_above_all_captured_sizes_is_launched_layer_by_layer():
    """As it is: no rows are added. The host decides how long that takes, alone and beside a cohort."""
    model = dataclasses.replace(estimator("H200", MOE).model, decode_sizes=(1, 2, 4, 8))
    eight, nine = DecodeWork(8, 9000), DecodeWork(9, 9000)
    launched = MOE.num_layers * model.coefficients.host_eager_layer
    assert model.decode(eight).seconds() < launched < model.decode(nine).seconds()
    cohort = CohortWork.of_prompt(512)
    assert model.merged(eight, cohort).seconds(1) < launched < model.merged(nine, cohort).seconds(1)
    any_size = dataclasses.replace(model, decode_sizes=())
    assert any_size.decode(nine).seconds() < launched


def test_an_iteration_is_computed_once_for_all_who_ask():
    """Planning, the size of the layer group, the prediction, and later what is learnt."""
    computed = []

    class Counting(CostModel):
        def _merged(self, decode, cohort):
            computed.append((decode, cohort))
            return super()._merged(decode, cohort)

    planner = slo_planner(Estimator(Counting(MOE, nominal_coefficients("H200")[0], 4096)))
    cohort = CohortWork.of_prompt(8192)
    for context in (1000, 1004):
        decode = DecodeWork(4, context)
        group = planner.next_layer_group(CohortView(48, 0, cohort, decode, itl_target=0.03))
        layers = planner.mean_layers(decode, cohort, group)
        seconds = planner.predict(decode, cohort, layers)
        planner.estimator.observe([Iteration(decode, cohort, layers)], seconds)
    assert computed == [(DecodeWork(4, 1000), cohort), (DecodeWork(4, 1004), cohort)]
    for tokens in range(100):  # what is kept does not grow
        planner.predict(decode, CohortWork.of_prompt(tokens + 1), 1)
    assert len(planner.estimator.model._lines) <= 16
