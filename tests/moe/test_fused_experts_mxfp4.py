"""MXFP4 on the CPU: the format, the kernels' layout, the compiled operator, the reference, errors."""

from __future__ import annotations

import importlib

import pytest
import torch
from fused_experts_cases import Shape, relative_error, uniform_ids
from layered_sglang.moe import fused_experts_mxfp4, native_status
from layered_sglang.moe.fused_experts_mxfp4_layout import check_fused_experts_mxfp4_input
from layered_sglang.moe.mxfp4 import dequantise, pack, quantise, unpack
from layered_sglang.moe.reference_mxfp4 import (
    fused_experts_mxfp4_fp32,
    fused_experts_mxfp4_reference,
)
from mxfp4_cases import Mxfp4Layer, assert_mxfp4_close, integer_mxfp4_layer, random_mxfp4_layer
from plan_cases import with_counts, with_invalid

SHAPE = Shape(num_experts=6, top_k=3, hidden=96, inter=160)  # both end within a block of 64


def layer_of(topk_ids: torch.Tensor) -> Mxfp4Layer:
    return random_mxfp4_layer(SHAPE, topk_ids, "cpu")


def test_every_value_of_the_format() -> None:
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    weights = torch.tensor([magnitudes + [-m for m in magnitudes] + [6.0] * 16])
    values, scales = quantise(weights)
    assert scales.tolist() == [[127]]
    # The even column is in the low four bits, as in published checkpoints; there is no -0 here.
    assert values[0, :8].tolist() == [0x10, 0x32, 0x54, 0x76, 0x90, 0xBA, 0xDC, 0xFE]
    assert torch.equal(dequantise(values, scales), weights)
    assert torch.equal(dequantise(values, scales + 3), 8 * weights)


def test_quantising_takes_the_nearest() -> None:
    weights = torch.zeros(1, 32)
    weights[0, :4] = torch.tensor([7.9, 0.24, -0.7, 2.6])
    assert dequantise(*quantise(weights))[0, :4].tolist() == [6, 0, -0.5, 3]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 10, 96, generator=generator)
    assert relative_error(dequantise(*quantise(weights)), weights) < 0.13  # one bit of mantissa


@pytest.mark.parametrize("gate_up", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (96, 32), (320, 160), (192, 128)])
def test_packing_is_undone(rows: int, columns: int, gate_up: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    values = torch.randint(256, (3, rows, columns // 2), generator=generator).to(torch.uint8)
    scales = torch.randint(129, (3, rows, columns // 32), generator=generator).to(torch.uint8)
    packed = pack(values, scales, gate_up=gate_up)
    assert packed.shape == (3, -(-rows // 64), -(-columns // 64), 2176)
    unpacked = unpack(packed, rows, columns, gate_up=gate_up)
    assert torch.equal(unpacked[0], values) and torch.equal(unpacked[1], scales)


def test_packing_refuses_what_the_kernels_cannot_compute() -> None:
    values, scales = quantise(torch.ones(1, 64, 64))
    with pytest.raises(ValueError, match=r"scales: expected at most 128 \(2\^1\), got 129"):
        pack(values, torch.full_like(scales, 129), gate_up=False)
    with pytest.raises(ValueError, match=r"scales: expected \[1, 64, 2\], got \[1, 64, 1\]"):
        pack(values, scales[..., :1], gate_up=False)


def by_definition(layer: Mxfp4Layer) -> torch.Tensor:
    """Token by token, slot by slot, in float64; the neurons rounded to bfloat16."""
    inter = SHAPE.inter
    w13 = dequantise(*unpack(layer.w13, 2 * inter, SHAPE.hidden, gate_up=True)).double()
    w2 = dequantise(*unpack(layer.w2, SHAPE.hidden, inter, gate_up=False)).double()
    y = torch.zeros(layer.x.shape, dtype=torch.float64)
    for token, ids in enumerate(layer.topk_ids.tolist()):
        for slot, expert in enumerate(ids):
            if not 0 <= expert < SHAPE.num_experts:
                continue
            sums = w13[expert] @ layer.x[token].double() + layer.w13_bias[expert]
            gate, up = sums.view(-1, 2).unbind(1)
            gate = torch.where(gate > 7, 7.0, gate)
            up = up.clamp(-7, 7)
            neurons = (gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)).bfloat16().double()
            row = w2[expert] @ neurons + layer.w2_bias[expert]
            y[token] += layer.topk_weights[token, slot] * row
    return y.float()


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
    assert relative_error(fused_experts_mxfp4_fp32(*layer), by_definition(layer)) < 1e-3


def test_some_neurons_are_limited() -> None:
    layer = layer_of(uniform_ids(40, SHAPE))
    limited = fused_experts_mxfp4_fp32(*layer)
    unlimited = fused_experts_mxfp4_fp32(*layer, limit=1e9)
    assert relative_error(limited, unlimited) > 0.05


@pytest.mark.parametrize("topk_ids", ROUTINGS.values(), ids=ROUTINGS.keys())
def test_operator_equals_reference(native: None, topk_ids: torch.Tensor) -> None:
    layer = layer_of(topk_ids)
    result = torch.ops.layered_sglang.fused_experts_mxfp4(*layer)
    assert_mxfp4_close(result, layer)
    out = torch.full_like(layer.x, float("nan"))
    torch.ops.layered_sglang.fused_experts_mxfp4_out(*layer, out, torch.empty(0, dtype=torch.uint8))
    assert torch.equal(out, result)


def test_operator_is_exact_on_integers(native: None) -> None:
    layer = integer_mxfp4_layer(SHAPE, uniform_ids(20, SHAPE), "cpu")
    result = torch.ops.layered_sglang.fused_experts_mxfp4(*layer, "bilinear")
    assert torch.equal(result, fused_experts_mxfp4_reference(*layer, "bilinear"))
    assert result.abs().max() > 8


def test_public_function_falls_back_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by its dotted name: in the package that is the function.
    module = importlib.import_module("layered_sglang.moe.fused_experts_mxfp4")
    monkeypatch.setattr(module, "has_kernels_for", lambda device: False)
    layer = layer_of(ROUTINGS["some"])
    assert torch.equal(fused_experts_mxfp4(*layer), fused_experts_mxfp4_reference(*layer))


@pytest.mark.parametrize("native_code", [True, False], ids=["operator", "reference"])
def test_options_and_writing_over_the_input(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, native_code: bool
) -> None:
    if native_code:
        request.getfixturevalue("native")
    else:
        module = importlib.import_module("layered_sglang.moe.fused_experts_mxfp4")
        monkeypatch.setattr(module, "has_kernels_for", lambda device: False)
    layer = layer_of(ROUTINGS["invalid ids"])
    options = {"alpha": 1.0, "limit": 0.5, "routed_scaling_factor": 2.5}
    result = fused_experts_mxfp4(*layer, **options)
    assert relative_error(result, fused_experts_mxfp4_fp32(*layer, **options)) < 0.005
    assert relative_error(result, 2.5 * fused_experts_mxfp4_fp32(*layer)) > 0.1
    x = layer.x.clone()
    over = fused_experts_mxfp4(x, *layer[1:], **options, out=x)
    assert over is x and torch.equal(x, result)


BAD_INPUTS = {
    "x: expected contiguous bfloat16 [tokens, hidden], got float32 [9, 96] on cpu": {
        "x": torch.zeros(9, 96)
    },
    "w13: expected contiguous uint8 [6, 5, 2, 2176] on cpu, got uint8 [6, 320, 48] on cpu": {
        "w13": torch.zeros(6, 320, 48, dtype=torch.uint8)
    },
    "w13_bias: expected contiguous float32 [experts, 2 * inter], got bfloat16 [6, 320] on cpu": {
        "w13_bias": torch.zeros(6, 320).bfloat16()
    },
    "w2: expected contiguous uint8 [6, 2, 3, 2176] on cpu, got uint8 [6, 2, 2, 2176] on cpu": {
        "w2": torch.zeros(6, 2, 2, 2176, dtype=torch.uint8)
    },
    "w2_bias: expected contiguous float32 [6, 96] on cpu, got float32 [6, 160] on cpu": {
        "w2_bias": torch.zeros(6, 160)
    },
    "topk_weights: expected contiguous float32 [9, 3] on cpu, got float64 [9, 3] on cpu": {
        "topk_weights": torch.zeros(9, 3).double()
    },
    "topk_ids: expected contiguous int32 [9, 3] on cpu, got int32 [8, 3] on cpu": {
        "topk_ids": torch.zeros(8, 3, dtype=torch.int32)
    },
    "w13_bias: expected two times a multiple of 32 columns, got 352": {
        "w13_bias": torch.zeros(6, 352)
    },
    "x: expected a hidden size that is a multiple of 32, got 100": {
        "x": torch.zeros(9, 100).bfloat16()
    },
    "topk_ids: expected a top_k of 1 ... 32, got 33": {
        "topk_weights": torch.zeros(9, 33),
        "topk_ids": torch.zeros(9, 33, dtype=torch.int32),
    },
    "activation: expected swiglu or bilinear, got silu": {"activation": "silu"},
    "path: expected auto, gemv, stream, few or many, got fast": {"path": "fast"},
}


@pytest.mark.parametrize(("message", "changes"), BAD_INPUTS.items(), ids=BAD_INPUTS.keys())
@pytest.mark.parametrize("checker", ["operator", "python"])
def test_errors(
    request: pytest.FixtureRequest, checker: str, message: str, changes: dict[str, object]
) -> None:
    arguments = {**layer_of(ROUTINGS["some"])._asdict(), **changes}
    if checker == "operator":
        request.getfixturevalue("native")
        call = torch.ops.layered_sglang.fused_experts_mxfp4
    else:
        call = check_fused_experts_mxfp4_input
    with pytest.raises(ValueError) as error:
        call(**arguments)
    assert message in str(error.value)


@pytest.mark.skipif(not native_status().available, reason=native_status().reason)
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_opcheck(tokens: int) -> None:
    layer = layer_of(uniform_ids(tokens, SHAPE))
    operators = torch.ops.layered_sglang
    torch.library.opcheck(operators.fused_experts_mxfp4.default, tuple(layer))
    out = torch.empty_like(layer.x)
    workspace = torch.empty(0, dtype=torch.uint8)
    torch.library.opcheck(operators.fused_experts_mxfp4_out.default, (*layer, out, workspace))
