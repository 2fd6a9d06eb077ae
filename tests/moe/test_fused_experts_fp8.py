"""The fp8 fused experts on the CPU: the compiled operator, the reference, layout and errors."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fp8_cases import Fp8Layer, assert_fp8_close, integer_fp8_layer, random_fp8_layer
from fused_experts_cases import Shape, relative_error, uniform_ids
from layered_sglang.moe import fused_experts_fp8, native_status
from layered_sglang.moe.fp8 import (
    dequantise_blocks,
    dequantise_groups,
    quantise_blocks,
    quantise_groups,
)
from layered_sglang.moe.fused_experts_fp8_layout import check_fused_experts_fp8_input
from layered_sglang.moe.reference import (
    fused_experts_fp8_fp32,
    fused_experts_fp8_reference,
    fused_experts_fp32,
)
from plan_cases import with_counts, with_invalid

SHAPE = Shape(num_experts=6, top_k=3, hidden=256, inter=384)
E4M3 = torch.float8_e4m3fn


def layer_of(topk_ids: torch.Tensor) -> Fp8Layer:
    return random_fp8_layer(SHAPE, topk_ids, "cpu")


def test_groups_are_quantised_by_their_largest() -> None:
    values = torch.tensor([[0.5] * 128 + [-3.0] + [1.0] * 127 + [0.0] * 128])
    quantised, scales = quantise_groups(values)
    assert quantised.dtype == E4M3 and quantised.shape == values.shape
    expected = torch.tensor([[0.5 / 448, 3 / 448, 1e-10 / 448]])
    torch.testing.assert_close(scales, expected, rtol=1e-6, atol=0)
    assert quantised.float()[0, [0, 128, 129, 256]].tolist() == [448, -448, 144, 0]
    assert relative_error(dequantise_groups(quantised, scales), values) < 0.04


def test_blocks_are_quantised_by_their_largest() -> None:
    weights = torch.ones(2, 256, 384)
    weights[1, 130, 300] = -7
    values, scales = quantise_blocks(weights)
    assert scales.shape == (2, 2, 3) and scales[1, 1, 2] == 7 / 448 and scales[0, 0, 0] == 1 / 448
    assert values.float()[1, 130, 300] == -448
    assert relative_error(dequantise_blocks(values, scales), weights) < 0.04


def by_definition(layer: Fp8Layer) -> torch.Tensor:
    """Token by token, slot by slot, block by block of K."""

    def product(row: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        values, row_scales = quantise_groups(row)
        out = torch.zeros(len(weights))
        for i, group in enumerate(values.float().split(128)):
            part = weights[:, 128 * i : 128 * (i + 1)].float() @ group
            out += part * row_scales[i] * scales[:, i].repeat_interleave(128)
        return out

    y = torch.zeros(layer.x.shape)
    for token, ids in enumerate(layer.topk_ids.tolist()):
        for slot, expert in enumerate(ids):
            if not 0 <= expert < SHAPE.num_experts:
                continue
            sums = product(layer.x[token], layer.w13[expert], layer.w13_scale_inv[expert])
            gate, up = sums.chunk(2)
            neurons = gate * torch.sigmoid(gate) * up
            out = product(neurons, layer.w2[expert], layer.w2_scale_inv[expert])
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
    # Not closer: a neuron at the border of two e4m3 values may be rounded to either.
    assert relative_error(fused_experts_fp8_fp32(*layer), by_definition(layer)) < 1e-3


def test_reference_is_near_to_the_unquantised_one() -> None:
    layer = layer_of(uniform_ids(20, SHAPE))
    w13 = dequantise_blocks(layer.w13, layer.w13_scale_inv)
    w2 = dequantise_blocks(layer.w2, layer.w2_scale_inv)
    unquantised = fused_experts_fp32(layer.x, w13, w2, layer.topk_weights, layer.topk_ids)
    error = relative_error(fused_experts_fp8_fp32(*layer), unquantised)
    assert 0.01 < error < 0.08  # e4m3 has 3 bits of mantissa


def test_reference_is_what_sglangs_triton_kernels_compute() -> None:
    pytest.importorskip("sglang")
    program = Path(__file__).with_name("sglang_fp8_interpreted.py")
    # A process of its own: Triton reads on import that it is to interpret.
    result = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    scale_error, error = (float(line) for line in result.stdout.split()[-2:])
    assert scale_error < 1e-6
    assert error < 0.02  # it rounds the gate and up sums and the neurons to bfloat16


@pytest.mark.parametrize("topk_ids", ROUTINGS.values(), ids=ROUTINGS.keys())
def test_operator_equals_reference(native: None, topk_ids: torch.Tensor) -> None:
    layer = layer_of(topk_ids)
    result = torch.ops.layered_sglang.fused_experts_fp8(*layer)
    assert_fp8_close(result, layer)
    out = torch.full_like(layer.x, float("nan"))
    torch.ops.layered_sglang.fused_experts_fp8_out(*layer, out, torch.empty(0, dtype=torch.uint8))
    assert torch.equal(out, result)


def test_operator_is_exact_on_integers(native: None) -> None:
    layer = integer_fp8_layer(SHAPE, uniform_ids(20, SHAPE), "cpu")
    result = torch.ops.layered_sglang.fused_experts_fp8(*layer, "bilinear")
    assert torch.equal(result, fused_experts_fp8_reference(*layer, "bilinear"))
    assert result.abs().max() > 8


def test_operator_rounds_every_value_as_torch_does(native: None) -> None:
    """All bf16 values in x, one in each row beside a 448, and weights that pick it out."""
    bits = torch.arange(-(1 << 15), 1 << 15, 7, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    values = values[values.isfinite() & (values.abs() <= 448)]
    x = torch.zeros(len(values), 128, dtype=torch.bfloat16)
    x[:, 0], x[:, 1] = values, 448  # scale 1
    w13 = torch.zeros(1, 256, 128)
    w13[:, 0, 0] = w13[:, 128, 1] = 1 / 448  # gate and up of neuron 0; blocks of their own
    w13_values, w13_scale_inv = quantise_blocks(w13)
    w2_values, w2_scale_inv = quantise_blocks(torch.ones(1, 128, 128))
    topk_ids = torch.zeros(len(values), 1, dtype=torch.int32)
    layer = (x, w13_values, w13_scale_inv, w2_values, w2_scale_inv, torch.ones(len(values), 1))
    result = torch.ops.layered_sglang.fused_experts_fp8(*layer, topk_ids, "bilinear")
    expected = values.float().to(E4M3).float() / 448
    torch.testing.assert_close(result.float()[:, 0], expected, rtol=0.005, atol=1e-12)


def test_public_function_falls_back_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by its dotted name: in the package that is the function.
    module = importlib.import_module("layered_sglang.moe.fused_experts_fp8")
    monkeypatch.setattr(module, "has_kernels_for", lambda device: False)
    layer = layer_of(ROUTINGS["some"])
    assert torch.equal(fused_experts_fp8(*layer), fused_experts_fp8_reference(*layer))


@pytest.mark.parametrize("native_code", [True, False], ids=["operator", "reference"])
def test_scaling_and_writing_over_the_input(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, native_code: bool
) -> None:
    if native_code:
        request.getfixturevalue("native")
    else:
        module = importlib.import_module("layered_sglang.moe.fused_experts_fp8")
        monkeypatch.setattr(module, "has_kernels_for", lambda device: False)
    layer = layer_of(ROUTINGS["invalid ids"])
    scaled = fused_experts_fp8(*layer, routed_scaling_factor=2.5)
    assert relative_error(scaled, 2.5 * by_definition(layer)) < 0.005
    x = layer.x.clone()
    result = fused_experts_fp8(x, *layer[1:], routed_scaling_factor=2.5, out=x)
    assert result is x and torch.equal(x, scaled)


BAD_INPUTS = {
    "x: expected contiguous bfloat16 [tokens, hidden], got float32 [9, 256] on cpu": {
        "x": torch.zeros(9, 256)
    },
    "w13: expected contiguous float8_e4m3fn [6, 768, 256] on cpu, got bfloat16 [6, 768, 256] on": {
        "w13": torch.zeros(6, 768, 256).bfloat16()
    },
    "w13_scale_inv: expected contiguous float32 [6, 6, 2] on cpu, got float32 [6, 3, 2] on cpu": {
        "w13_scale_inv": torch.zeros(6, 3, 2)
    },
    "w2: expected contiguous float8_e4m3fn [experts, hidden, inter], got float32 [6, 256] on cpu": {
        "w2": torch.zeros(6, 256)
    },
    "w2_scale_inv: expected contiguous float32 [6, 2, 3] on cpu, got uint8 [6, 2, 3] on cpu": {
        "w2_scale_inv": torch.zeros(6, 2, 3, dtype=torch.uint8)
    },
    "topk_weights: expected contiguous float32 [9, 3] on cpu, got float64 [9, 3] on cpu": {
        "topk_weights": torch.zeros(9, 3).double()
    },
    "topk_ids: expected contiguous int32 [9, 3] on cpu, got int32 [8, 3] on cpu": {
        "topk_ids": torch.zeros(8, 3, dtype=torch.int32)
    },
    "w2: expected an intermediate size that is a multiple of 128, got 192": {
        "w2": torch.zeros(6, 256, 192).to(E4M3)
    },
    "x: expected a hidden size that is a multiple of 128, got 200": {
        "x": torch.zeros(9, 200).bfloat16()
    },
    "topk_ids: expected a top_k of 1 ... 32, got 33": {
        "topk_weights": torch.zeros(9, 33),
        "topk_ids": torch.zeros(9, 33, dtype=torch.int32),
    },
    "activation: expected silu or bilinear, got gelu": {"activation": "gelu"},
    "path: expected auto, narrow or wide, got fast": {"path": "fast"},
}


@pytest.mark.parametrize(("message", "changes"), BAD_INPUTS.items(), ids=BAD_INPUTS.keys())
@pytest.mark.parametrize("checker", ["operator", "python"])
def test_errors(
    request: pytest.FixtureRequest, checker: str, message: str, changes: dict[str, object]
) -> None:
    arguments = {**layer_of(ROUTINGS["some"])._asdict(), **changes}
    if checker == "operator":
        request.getfixturevalue("native")
        call = torch.ops.layered_sglang.fused_experts_fp8
    else:
        call = check_fused_experts_fp8_input
    with pytest.raises(ValueError) as error:
        call(**arguments)
    assert message in str(error.value)


@pytest.mark.skipif(not native_status().available, reason=native_status().reason)
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_opcheck(tokens: int) -> None:
    layer = layer_of(uniform_ids(tokens, SHAPE))
    # NOTE: not all of its checks: some compute with the inputs, and torch cannot with fp8 ones.
    checks = ("test_autograd_registration", "test_faketensor")
    operators = torch.ops.layered_sglang
    torch.library.opcheck(operators.fused_experts_fp8.default, tuple(layer), test_utils=checks)
    out = torch.empty_like(layer.x)
    workspace = torch.empty(0, dtype=torch.uint8)
    torch.library.opcheck(
        operators.fused_experts_fp8_out.default, (*layer, out, workspace), test_utils=checks
    )
