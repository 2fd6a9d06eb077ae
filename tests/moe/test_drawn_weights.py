"""benchmarks/serving/drawn_weights.py: with it a layer's experts show in the hidden states."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from layered_sglang.moe.mxfp4 import dequantise
from layered_sglang.moe.reference import fused_experts_fp32

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving"))
from drawn_weights import ROUTER_GAIN, draw_mxfp4_weights, draw_weights

EXPERTS, TOP_K, HIDDEN, INTER, TOKENS = 16, 4, 512, 96, 64
SHAPES = {
    "model.embed_tokens.weight": (1000, HIDDEN),
    "layers.0.post_attention_layernorm.weight": (HIDDEN,),
    "layers.0.mlp.gate.weight": (EXPERTS, HIDDEN),
    "layers.0.mlp.gate.bias": (EXPERTS,),
    "layers.0.mlp.experts.w13_weight": (EXPERTS, 2 * INTER, HIDDEN),
    "layers.0.mlp.experts.w2_weight": (EXPERTS, HIDDEN, INTER),
    "layers.1.mlp.experts.w2_weight": (EXPERTS, HIDDEN, INTER),
}


@pytest.fixture
def weights() -> dict[str, torch.nn.Parameter]:
    """Drawn over SGLang's dummy weights: uniform within 0.001, equal sizes alike."""
    parameters = {}
    for name, shape in SHAPES.items():
        dummy = torch.empty(shape, dtype=torch.bfloat16)
        dummy.uniform_(-1e-3, 1e-3, generator=torch.Generator().manual_seed(1234))
        parameters[name] = torch.nn.Parameter(dummy, requires_grad=False)
    model = SimpleNamespace(
        named_parameters=lambda: iter(parameters.items()), named_modules=lambda: iter(())
    )
    draw_weights(None, SimpleNamespace(model=model))
    return parameters


def test_sizes_and_seeds(weights) -> None:
    deviations = {name: w.float().std().item() for name, w in weights.items()}
    assert deviations["model.embed_tokens.weight"] == pytest.approx(1, rel=0.02)
    for name, gain in (("gate.weight", ROUTER_GAIN), ("experts.w13_weight", 1)):
        assert deviations[f"layers.0.mlp.{name}"] == pytest.approx(gain * HIDDEN**-0.5, rel=0.05)
    assert deviations["layers.0.mlp.experts.w2_weight"] == pytest.approx(INTER**-0.5, rel=0.02)
    assert (weights["layers.0.post_attention_layernorm.weight"] == 1).all()
    assert (weights["layers.0.mlp.gate.bias"] == 0).all()
    first, second = (weights[f"layers.{i}.mlp.experts.w2_weight"] for i in range(2))
    assert not torch.equal(first, second)


def test_experts_show_in_the_hidden_states(weights) -> None:
    """They change most elements by more than bfloat16's rounding, 0.4%, and do not drown the rest."""
    hidden = weights["model.embed_tokens.weight"][:TOKENS]
    x = torch.nn.functional.rms_norm(
        hidden, (HIDDEN,), weights["layers.0.post_attention_layernorm.weight"]
    )
    router = (x.float() @ weights["layers.0.mlp.gate.weight"].float().T).softmax(-1)
    top, ids = router.topk(TOP_K)
    experts = [weights[f"layers.0.mlp.experts.{name}_weight"] for name in ("w13", "w2")]
    added = fused_experts_fp32(x, *experts, top / top.sum(-1, keepdim=True), ids.int())
    share = (added.norm() / hidden.float().norm()).item()
    assert 0.05 < share < 2
    assert ((hidden + added.bfloat16()) != hidden).float().mean() > 0.9


def test_mxfp4_experts_are_of_the_same_size() -> None:
    """And bytes that are there after loading stay as the runner has them."""
    layers = []
    for layer_id in range(2):
        layer = torch.nn.Module()
        layer.layer_id = layer_id
        for name, (rows, columns) in {"w13": (2 * INTER, HIDDEN), "w2": (HIDDEN, INTER)}.items():
            for part, size in (("weight", columns // 2), ("weight_scale", columns // 32)):
                values = torch.zeros(EXPERTS, rows, size, dtype=torch.uint8)
                parameter = torch.nn.Parameter(values, requires_grad=False)
                layer.register_parameter(f"{name}_{part}", parameter)
        draw_mxfp4_weights(None, layer)
        layers.append(layer)
        for name, columns in (("w13", HIDDEN), ("w2", INTER)):
            values = dequantise(
                getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_weight_scale")
            )
            # Scales are powers of two.
            assert 0.7 < values.std().item() * columns**0.5 < 1.42
    assert not torch.equal(layers[0].w2_weight, layers[1].w2_weight)
    before = layers[0].w13_weight.clone()
    draw_weights(None, SimpleNamespace(model=layers[0]))
    assert torch.equal(layers[0].w13_weight, before)


def test_mxfp4_experts_are_not_drawn_again_in_the_form_that_a_runner_gave_them() -> None:
    """SGLang's Triton runner has bfloat16 in the place of the bytes."""

    class Mxfp4MoEMethod:
        """By its name SGLang's."""

    class Layer(torch.nn.Module):
        def __init__(self, method: object) -> None:
            super().__init__()
            self.quant_method = method
            self.w13_weight = torch.nn.Parameter(torch.ones(2, 4, 8, dtype=torch.bfloat16))
            self.w13_weight_bias = torch.nn.Parameter(torch.ones(2, 4))

    model = torch.nn.ModuleDict({"mxfp4": Layer(Mxfp4MoEMethod()), "bf16": Layer(object())})
    draw_weights(None, SimpleNamespace(model=model))
    assert (model["mxfp4"].w13_weight == 1).all()
    assert not (model["mxfp4"].w13_weight_bias == 1).any()
    assert not (model["bf16"].w13_weight == 1).any()
