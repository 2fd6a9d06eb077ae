"""Random weights depend on the seed and the tensor's name, and are scaled as they say."""

from __future__ import annotations

from enum import Enum

import numpy as np
import pytest
from layered_sglang.model_zoo import PRESETS
from layered_sglang.model_zoo.tensors import TensorSpec
from layered_sglang.model_zoo.weights import DEFAULT_SCALES, ROUTES, random_weights

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
    printable = weights["lm_head.weight"][0x20:0x7F, ROUTES:]
    assert printable.std() * root == pytest.approx(DEFAULT_SCALES.logits, rel=0.05)
    assert weights["model.norm.weight"].mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("preset", ["tiny", "tiny-mixtral", "tiny-glm4-moe", "tiny-gpt-oss"])
def test_no_noise_reaches_the_choice_of_experts(preset) -> None:
    """Blocks write nothing where the router reads, and its logits of a token are far apart."""
    config = PRESETS[preset].config
    weights = random_weights(config, seed=0)
    tokens = weights["model.embed_tokens.weight"][:256]
    routers = {
        name: w for name, w in weights.items() if name.endswith(("gate.weight", "router.weight"))
    }
    assert len(routers) >= 7
    for name, router in routers.items():
        assert not router[:, ROUTES:].any(), name
        logits = np.sort(tokens @ router.T, axis=1)
        assert np.diff(logits).min() > 0.2, name
        assert logits.std(axis=1) == pytest.approx(DEFAULT_SCALES.router, rel=1e-4)
    written = [w for name, w in weights.items() if name.endswith(("o_proj.weight", "w2.weight"))]
    written += [w for name, w in weights.items() if name.endswith("down_proj.weight")]
    written += [w for name, w in weights.items() if name.endswith("o_proj.bias")]
    # Experts in one tensor are [experts, in, out]; their biases [experts, out].
    stacked = [w.T for n, w in weights.items() if n.endswith(("down_proj", "down_proj_bias"))]
    assert len(written) > 8 and not any(w[:ROUTES].any() for w in written + stacked)


def test_routes_differ_and_use_all_experts(weights) -> None:
    tokens = weights["model.embed_tokens.weight"][:256]
    for layers in (range(4), range(4, 8)):
        chosen = set()
        for layer in layers:
            router = weights[f"model.layers.{layer}.mlp.gate.weight"]
            chosen |= {tuple(row) for row in np.argsort(tokens @ router.T, axis=1)[:, -4:]}
        assert len(chosen) > 0.9 * 4 * ROUTES
        assert set(np.array(sorted(chosen)).flat) == set(range(16))


def test_the_routers_bias_is_for_one_expert_and_against_another() -> None:
    weights = random_weights(PRESETS["tiny-glm4-moe"].config, seed=0)
    bias = weights["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert sorted(bias) == [-2.0] + [0.0] * 14 + [2.0]


def test_padding_ids_have_no_logits(weights) -> None:
    assert not weights["lm_head.weight"][259:].any()


def test_routed_experts_make_up_for_the_scaling_factor() -> None:
    config = PRESETS["tiny-glm4-moe"].config
    plain = random_weights({**config, "routed_scaling_factor": 1.0}, seed=0)
    scaled = random_weights(config, seed=0)
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    np.testing.assert_allclose(scaled[name] * config["routed_scaling_factor"], plain[name], 1e-6)


def test_a_role_without_a_scale_is_refused(monkeypatch) -> None:
    odd = TensorSpec("odd", (4,), Enum("Odd", "ODD").ODD)
    monkeypatch.setattr("layered_sglang.model_zoo.weights.model_tensors", lambda config: [odd])
    with pytest.raises(ValueError, match="no random weights for odd: role ODD"):
        random_weights(CONFIG, seed=0)


def test_experts_in_one_tensor_are_scaled_by_what_they_sum_up() -> None:
    config = {**PRESETS["tiny-gpt-oss"].config, "intermediate_size": 256}
    down = random_weights(config, seed=0)["model.layers.0.mlp.experts.down_proj"]
    assert down[..., ROUTES:].std() * 256**0.5 == pytest.approx(DEFAULT_SCALES.down, rel=0.05)


def test_a_router_bias_that_weights_too_keeps_the_order_of_the_experts() -> None:
    weights = random_weights(PRESETS["tiny-gpt-oss"].config, seed=0)
    tokens = weights["model.embed_tokens.weight"][:256]
    for layer in range(8):
        router = weights[f"model.layers.{layer}.mlp.router.weight"]
        bias = weights[f"model.layers.{layer}.mlp.router.bias"]
        never = int(bias.argmin())
        plain = tokens @ router.T
        # Late in the model the norm leaves a third of the first layer's logits.
        for scale in (1.0, 0.33):
            biased = scale * plain + bias
            assert (biased.argmin(axis=1) == never).all()
            others = [i for i in range(len(bias)) if i != never]
            assert (biased[:, others].argsort(1) == plain[:, others].argsort(1)).all()
