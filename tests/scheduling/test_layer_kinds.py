"""Layers that are not alike: windows, dense first layers, and layer groups by what they cost."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layered_sglang.model_zoo import PRESETS
from layered_sglang.model_zoo.published import GPT_OSS_20B, QWEN3_30B_A3B
from layered_sglang.model_zoo.tensors import count_parameters, text_part
from layered_sglang.scheduling import (
    CohortView,
    CohortWork,
    CostModel,
    DecodeWork,
    ModelShape,
    SloLayerGroups,
)
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.scheduling.layer_groups import end_by_cost
from layered_sglang.scheduling.model_shape import LayerKind
from worlds import decodes, estimator, targets, works

WINDOWED = ModelShape.from_config(GPT_OSS_20B)
#: Three dense layers before 45 with experts, as DeepSeek-V3 begins.
DENSE_FIRST = ModelShape.from_config({**QWEN3_30B_A3B, "first_k_dense_replace": 3})
H200 = nominal_coefficients("H200")[0]

costs = st.lists(st.floats(0.01, 10), min_size=1, max_size=80)
shapes = st.sampled_from([WINDOWED, DENSE_FIRST])


@pytest.mark.parametrize(
    "preset",
    [
        "gpt-oss-20b",
        "qwen3-next-80b-a3b",
        "tiny-deepseek-v2",
        "tiny-deepseek-v3",
        "tiny-ernie4.5-moe",
        "tiny-glm4-moe",
        "tiny-glm4-moe-lite",
        "tiny-minimax-m2",
        "tiny-olmoe",
        "tiny-qwen2-moe",
        "tiny-qwen3-next",
        "tiny-qwen3.5",
        "tiny-qwen3.5-moe",
    ],
)
def test_a_shape_has_the_weights_of_its_model(preset):
    config = text_part(PRESETS[preset].config)
    if preset == "tiny-qwen3.5":
        config = {**config, "num_experts": 512}  # as SGLang completes it
    shape, count = ModelShape.from_config(config), count_parameters(config)
    weights = shape.num_layers * (shape.dense_params + shape.experts * shape.expert_params)
    # Norms and biases are not among them.
    assert weights + shape.head_params == pytest.approx(count.total - count.embedding, rel=0.01)


@pytest.mark.parametrize("shape", [WINDOWED, DENSE_FIRST])
def test_a_shape_survives_json(shape):
    assert ModelShape.from_dict(json.loads(json.dumps(dataclasses.asdict(shape)))) == shape


def test_every_other_layer_of_gpt_oss_has_a_window():
    assert [kind.window for kind in WINDOWED.layers] == [128, 0] * 12
    assert ModelShape.from_config(QWEN3_30B_A3B).layers == ()


def test_a_window_bounds_what_decode_reads():
    model = CostModel(WINDOWED, H200)
    everything = dataclasses.replace(
        WINDOWED, layers=tuple(kind._replace(window=0) for kind in WINDOWED.layers)
    )
    unbounded = CostModel(everything, H200)
    short, long = DecodeWork(16, 16 * 100), DecodeWork(16, 16 * 50_000)
    assert model.decode(short) == unbounded.decode(short)
    # Half the layers read 128 tokens a request instead of 50,000.
    saved = unbounded.decode(long).device - model.decode(long).device
    read = 12 * 16 * (50_000 - 128) * WINDOWED.kv_size * 2 / H200.kv_bandwidth
    assert saved == pytest.approx(read, rel=1e-9)


def test_a_window_bounds_the_pairs_of_a_prompt():
    work = CohortWork.of_prompt(8192)
    time = CostModel(WINDOWED, H200).merged(DecodeWork(), work)
    window, full = time.costs[:2]
    pairs = work.pairs - 8192 * 128
    seconds = 4 * pairs * WINDOWED.attention_size / H200.attention_flops
    assert (full - window) * time.device_per_layer == pytest.approx(seconds, rel=1e-9)


@given(shapes, decodes, works)
def test_costs_are_in_mean_layers(shape, decode, work):
    time = CostModel(shape, H200).merged(decode, work)
    assert sum(time.costs) == pytest.approx(shape.num_layers)
    assert time.mean_layers(0, shape.num_layers) == pytest.approx(shape.num_layers)
    assert time.dearest == max(time.costs)


def test_alike_layers_have_no_costs_of_their_own():
    time = CostModel(ModelShape.from_config(QWEN3_30B_A3B), H200).merged(
        DecodeWork(4, 400), CohortWork.of_prompt(500)
    )
    assert time.costs == () and time.mean_layers(3, 9) == 6 and time.dearest == 1


def test_dense_layers_before_layers_with_experts_cost_less():
    time = CostModel(DENSE_FIRST, H200).merged(DecodeWork(8, 8000), CohortWork.of_prompt(512))
    assert len(set(time.costs[:3])) == 1 and max(time.costs[:3]) < min(time.costs[3:])


def test_layers_of_one_kind_cost_what_they_would_cost_unnamed():
    """A list of equal layers is priced as no list."""
    plain = ModelShape.from_config(QWEN3_30B_A3B)
    alike = LayerKind(plain.dense_params, plain.expert_params)
    listed = dataclasses.replace(plain, layers=(alike,) * 48)
    decode, work = DecodeWork(8, 8000), CohortWork.of_prompt(512)
    assert CostModel(listed, H200).merged(decode, work) == CostModel(plain, H200).merged(
        decode, work
    )


@given(costs, st.data())
def test_a_group_by_cost_keeps_its_limit_and_has_a_layer(layers, data):
    start = data.draw(st.integers(0, len(layers) - 1))
    most = data.draw(st.floats(0, 1.2 * sum(layers)))
    end = end_by_cost(layers, start, most)
    assert start < end <= len(layers)
    assert end == start + 1 or sum(layers[start:end]) <= most * (1 + 1e-9)
    if sum(layers[start:]) <= most:
        assert end == len(layers)


@given(costs, st.floats(0.5, 200))
def test_groups_by_cost_are_few_and_even(layers, most):
    """None is larger than an equal share by more than a layer; so few are enough."""
    most = max(most, 2 * max(layers))
    start, groups = 0, []
    while start < len(layers):
        end = end_by_cost(layers, start, most)
        groups.append(sum(layers[start:end]))
        start = end
    least = -(-sum(layers) // most)
    assert max(groups) <= sum(layers) / least + max(layers) + 1e-6
    # A group may stay a layer short of the limit.
    assert len(groups) <= 1 + sum(layers) / (most - max(layers))


@given(shapes, decodes, works, targets, st.data())
def test_a_layer_group_keeps_the_target_where_a_layer_can(shape, decode, work, target, data):
    est = estimator(shape=shape)
    policy = SloLayerGroups(est)
    start = data.draw(st.integers(0, shape.num_layers - 1))
    view = CohortView(shape.num_layers, start, work, decode, target)
    group = policy.next_layer_group(view)
    assert group.start == start and start < group.end <= shape.num_layers
    if decode.requests == 0:
        assert group.end == shape.num_layers
        return
    line, budget = est.merged(decode, work), policy.budget(decode, target)
    first, last = start == 0, group.end == shape.num_layers
    seconds = line.at(first, last).seconds(line.mean_layers(*group))
    if group.end == shape.num_layers:
        limit = budget if target is None else target  # a cheap end may use up the margin
        assert target is None or seconds <= limit * (1 + 1e-9) or group.end == start + 1
    else:
        assert seconds <= budget * (1 + 1e-9) or group.end == start + 1


def test_layer_groups_of_cheap_layers_have_more_of_them():
    shape = ModelShape.from_config({**QWEN3_30B_A3B, "first_k_dense_replace": 12})
    est = estimator(shape=shape)
    decode, work = DecodeWork(16, 32_000), CohortWork.of_prompt(512)
    policy, groups, start = SloLayerGroups(est), [], 0
    while start < 48:
        group = policy.next_layer_group(CohortView(48, start, work, decode, 0.012))
        groups.append(group)
        start = group.end
    line = est.merged(decode, work)
    sizes = [line.mean_layers(*group) for group in groups]
    assert len(groups) == 3 and max(sizes) - min(sizes) <= 1.5 * line.dearest
    counts = [end - start for start, end in groups]
    assert counts[0] > 1.4 * max(counts[1:])
