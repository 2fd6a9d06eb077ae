"""Random weights depend on the seed and the tensor's name, and are scaled as they say."""

from __future__ import annotations

import numpy as np
import pytest
from layered_sglang.model_zoo import PRESETS
from layered_sglang.model_zoo.weights import DEFAULT_SCALES, random_weights

CONFIG = PRESETS["tiny"].config


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(CONFIG, seed=0)


def test_all_are_float32(weights) -> None:
    assert {array.dtype for array in weights.values()} == {np.dtype("float32")}


def test_another_seed_gives_other_values(weights) -> None:
    name = "model.layers.3.self_attn.q_proj.weight"
    assert not np.array_equal(weights[name], random_weights(CONFIG, seed=1)[name])


def test_tensors_differ_from_each_other(weights) -> None:
    first, second = (weights[f"model.layers.{layer}.mlp.gate.weight"] for layer in (0, 1))
    assert not np.array_equal(first, second)


def test_more_layers_leave_the_others_as_they_were(weights) -> None:
    deeper = random_weights({**CONFIG, "num_hidden_layers": 10}, seed=0)
    assert len(deeper) > len(weights)
    for name, values in weights.items():
        assert np.array_equal(values, deeper[name]), name


def test_scales(weights) -> None:
    root = CONFIG["hidden_size"] ** 0.5
    assert weights["model.embed_tokens.weight"].std() == pytest.approx(1, rel=0.05)
    router = np.concatenate(
        [weights[f"model.layers.{layer}.mlp.gate.weight"] for layer in range(8)]
    )
    assert router.std() * root == pytest.approx(DEFAULT_SCALES.router, rel=0.05)
    printable = weights["lm_head.weight"][0x20:0x7F]
    assert printable.std() * root == pytest.approx(DEFAULT_SCALES.logits, rel=0.05)
    assert weights["model.norm.weight"].mean() == pytest.approx(1, abs=0.05)


def test_padding_ids_have_no_logits(weights) -> None:
    assert not weights["lm_head.weight"][259:].any()


def test_routed_experts_make_up_for_the_scaling_factor() -> None:
    config = PRESETS["tiny-glm4-moe"].config
    plain = random_weights({**config, "routed_scaling_factor": 1.0}, seed=0)
    scaled = random_weights(config, seed=0)
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    np.testing.assert_allclose(scaled[name] * config["routed_scaling_factor"], plain[name], 1e-6)


def test_a_role_without_a_scale_is_refused() -> None:
    config = {**PRESETS["gpt-oss-20b"].config, "vocab_size": 64, "hidden_size": 64}
    with pytest.raises(ValueError, match=r"no random weights for .*sinks"):
        random_weights(config, seed=0)
