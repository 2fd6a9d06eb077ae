"""The fused experts on the CPU: the compiled operator, the reference, layout and errors."""

from __future__ import annotations

import importlib

import pytest
import torch
from fused_experts_cases import Layer, Shape, assert_close, integer_layer, random_layer, uniform_ids
from layered_sglang.moe import fused_experts, native_status
from layered_sglang.moe.fused_experts_layout import check_fused_experts_input
from layered_sglang.moe.reference import fused_experts_fp32, fused_experts_reference
from plan_cases import with_counts, with_invalid

SHAPE = Shape(num_experts=6, top_k=3, hidden=72, inter=48)


def layer_of(topk_ids: torch.Tensor) -> Layer:
    return random_layer(SHAPE, topk_ids, "cpu")


def by_definition(layer: Layer) -> torch.Tensor:
    """Token by token and slot by slot."""
    w13 = layer.w13.float()
    y = torch.zeros(layer.x.shape)
    for token, ids in enumerate(layer.topk_ids.tolist()):
        for slot, expert in enumerate(ids):
            if not 0 <= expert < SHAPE.num_experts:
                continue
            gate, up = (w13[expert] @ layer.x[token].float()).chunk(2)
            neurons = (gate * torch.sigmoid(gate) * up).bfloat16().float()
            out = layer.w2[expert].float() @ neurons
            y[token] += layer.topk_weights[token, slot] * out
    return y


ROUTINGS = {
    "no tokens": torch.empty(0, 3, dtype=torch.int32),
    "one token": uniform_ids(1, SHAPE),
    "some": uniform_ids(9, SHAPE),
    "all on one expert": torch.full((7, 3), 5, dtype=torch.int32),
    "an expert without rows": with_counts([4, 0, 1, 0, 7, 0]),
    "no valid id": torch.full((4, 3), -1, dtype=torch.int32),
    "invalid ids": with_invalid(uniform_ids(9, SHAPE), [-1, 6, 1 << 30]),
}


@pytest.mark.parametrize("topk_ids", ROUTINGS.values(), ids=ROUTINGS.keys())
def test_reference_is_the_definition(topk_ids: torch.Tensor) -> None:
    layer = layer_of(topk_ids)
    torch.testing.assert_close(fused_experts_fp32(*layer), by_definition(layer))


@pytest.mark.parametrize("topk_ids", ROUTINGS.values(), ids=ROUTINGS.keys())
def test_operator_equals_reference(native: None, topk_ids: torch.Tensor) -> None:
    layer = layer_of(topk_ids)
    result = torch.ops.layered_sglang.fused_experts(*layer)
    assert_close(result, layer)
    out = torch.full_like(layer.x, float("nan"))
    torch.ops.layered_sglang.fused_experts_out(*layer, out, torch.empty(0, dtype=torch.uint8))
    assert torch.equal(out, result)


def test_operator_is_exact_on_integers(native: None) -> None:
    layer = integer_layer(SHAPE, uniform_ids(20, SHAPE), "cpu")
    result = torch.ops.layered_sglang.fused_experts(*layer, "bilinear")
    assert torch.equal(result, fused_experts_reference(*layer, "bilinear"))
    assert result.abs().max() > 8


def test_public_function_falls_back_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by its dotted name: in the package that is the function.
    module = importlib.import_module("layered_sglang.moe.fused_experts")
    monkeypatch.setattr(module, "has_kernels_for", lambda device: False)
    layer = layer_of(ROUTINGS["some"])
    assert torch.equal(fused_experts(*layer), fused_experts_reference(*layer))


@pytest.mark.parametrize("native_code", [True, False], ids=["operator", "reference"])
def test_scaling_and_writing_over_the_input(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, native_code: bool
) -> None:
    if native_code:
        request.getfixturevalue("native")
    else:
        module = importlib.import_module("layered_sglang.moe.fused_experts")
        monkeypatch.setattr(module, "has_kernels_for", lambda device: False)
    layer = layer_of(ROUTINGS["invalid ids"])
    scaled = fused_experts(*layer, routed_scaling_factor=2.5)
    torch.testing.assert_close(scaled.float(), 2.5 * by_definition(layer), rtol=0.02, atol=0.02)
    x = layer.x.clone()
    result = fused_experts(x, *layer[1:], routed_scaling_factor=2.5, out=x)
    assert result is x and torch.equal(x, scaled)


BAD_INPUTS = {
    "x: expected contiguous bfloat16 [tokens, hidden], got float32 [9, 72] on cpu": {
        "x": torch.zeros(9, 72)
    },
    "w13: expected contiguous bfloat16 [6, 96, 72] on cpu, got bfloat16 [6, 96, 64] on cpu": {
        "w13": torch.zeros(6, 96, 64).bfloat16()
    },
    "w2: expected contiguous bfloat16 [experts, hidden, inter], got bfloat16 [6, 72] on cpu": {
        "w2": torch.zeros(6, 72).bfloat16()
    },
    "topk_weights: expected contiguous float32 [9, 3] on cpu, got float64 [9, 3] on cpu": {
        "topk_weights": torch.zeros(9, 3).double()
    },
    "topk_ids: expected contiguous int32 [9, 3] on cpu, got int32 [8, 3] on cpu": {
        "topk_ids": torch.zeros(8, 3, dtype=torch.int32)
    },
    "w2: expected an intermediate size that is a multiple of 8, got 44": {
        "w13": torch.zeros(6, 88, 72).bfloat16(),
        "w2": torch.zeros(6, 72, 44).bfloat16(),
    },
    "x: expected a hidden size that is a multiple of 8, got 4": {
        "x": torch.zeros(9, 4).bfloat16(),
        "w13": torch.zeros(6, 96, 4).bfloat16(),
        "w2": torch.zeros(6, 4, 48).bfloat16(),
    },
    "topk_ids: expected a top_k of 1 ... 32, got 33": {
        "topk_weights": torch.zeros(9, 33),
        "topk_ids": torch.zeros(9, 33, dtype=torch.int32),
    },
    "activation: expected silu or bilinear, got gelu": {"activation": "gelu"},
    "path: expected auto, gemv, gemm or gemm_pairs, got fast": {"path": "fast"},
}


@pytest.mark.parametrize(("message", "changes"), BAD_INPUTS.items(), ids=BAD_INPUTS.keys())
@pytest.mark.parametrize("checker", ["operator", "python"])
def test_errors(
    request: pytest.FixtureRequest, checker: str, message: str, changes: dict[str, object]
) -> None:
    arguments = {**layer_of(ROUTINGS["some"])._asdict(), **changes}
    if checker == "operator":
        request.getfixturevalue("native")
        call = torch.ops.layered_sglang.fused_experts
    else:
        call = check_fused_experts_input
    with pytest.raises(ValueError) as error:
        call(**arguments)
    assert message in str(error.value)


@pytest.mark.skipif(not native_status().available, reason=native_status().reason)
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_opcheck(tokens: int) -> None:
    layer = layer_of(uniform_ids(tokens, SHAPE))
    torch.library.opcheck(torch.ops.layered_sglang.fused_experts.default, tuple(layer))
    out = torch.empty_like(layer.x)
    workspace = torch.empty(0, dtype=torch.uint8)
    torch.library.opcheck(
        torch.ops.layered_sglang.fused_experts_out.default, (*layer, out, workspace)
    )
