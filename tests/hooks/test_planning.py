"""Values that a running server takes at ``/layered_prefill``, on their way to its scheduler."""

from __future__ import annotations

import pytest
from layered_sglang.config import ConfigError, LayeredConfig
from layered_sglang.hooks.planning import changed, pack, unpack, values

START = LayeredConfig(itl_slo_ms=40.0, cost_profile="profile.json", layered_max_prefill_tokens=4096)


@pytest.mark.parametrize(
    ("wanted", "policy", "itl", "tokens", "groups"),
    [
        ({}, "slo", None, None, None),
        ({"itl_slo_ms": 25}, "slo", 25, None, None),
        ({"itl_slo_ms": 12.5, "layer_group_policy": "slo"}, "slo", 12.5, None, None),
        ({"layer_group_policy": "fixed"}, "fixed", None, None, None),
        ({"layer_group_tokens": 256}, "fixed", None, 256, None),
        ({"num_layer_groups": 8, "itl_slo_ms": None}, "fixed", None, None, 8),
    ],
)
def test_values_arrive_as_they_were_sent(wanted, policy, itl, tokens, groups):
    new = changed(START, wanted, 8)
    assert values(new) == {
        "layer_group_policy": policy,
        "itl_slo_ms": itl,
        "layer_group_tokens": tokens,
        "num_layer_groups": groups,
    }
    assert new.layered_max_prefill_tokens == 4096, "the rest stays"
    packed = pack(new) | {"sglang_s_own": 3}
    assert all(type(value) in (int, float) for value in packed.values())
    received = unpack(packed, START, 8)
    assert received is not None
    assert values(received) == values(new)
    assert packed == {"sglang_s_own": 3}, "SGLang finds its own alone"


def test_a_request_of_sglang_s_own_is_left_alone():
    state = {"pp_max_micro_batch_size": 8}
    assert unpack(state, START, 8) is None
    assert state == {"pp_max_micro_batch_size": 8}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], "expected an object with some of layer_group_policy, itl_slo_ms,"),
        ({"itl_slo": 3}, "unknown field 'itl_slo'; there are: layer_group_policy"),
        ({"itl_slo_ms": "3"}, "itl_slo_ms must be a number, got '3'"),
        ({"itl_slo_ms": True}, "itl_slo_ms must be a number, got True"),
        ({"itl_slo_ms": -1}, "--itl-slo-ms must be a positive number of milliseconds, got -1"),
        ({"itl_slo_ms": float("nan")}, "--itl-slo-ms must be a positive number"),
        (
            {"layer_group_policy": "best"},
            "layer_group_policy must be one of slo, fixed, got 'best'",
        ),
        ({"num_layer_groups": 2.5}, "num_layer_groups must be a whole number, got 2.5"),
        ({"num_layer_groups": 0}, "--num-layer-groups must be at least 1, got 0"),
        ({"num_layer_groups": 9}, "--num-layer-groups 9 is more than the model's 8 layers"),
        ({"layer_group_policy": "fixed", "itl_slo_ms": 9}, "--itl-slo-ms has no effect with layer"),
        ({"layer_group_policy": "slo", "num_layer_groups": 2}, "--num-layer-groups has no effect"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wanted, message):
    with pytest.raises(ConfigError) as caught:
        changed(START, wanted, 8)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
