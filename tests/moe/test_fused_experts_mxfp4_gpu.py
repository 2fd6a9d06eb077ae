"""The MXFP4 fused experts' kernels on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from fused_experts_cases import Shape, uniform_ids
from guarded import Guarded
from layered_sglang.moe import fused_experts_mxfp4, fused_experts_mxfp4_workspace_bytes
from layered_sglang.moe.reference_mxfp4 import fused_experts_mxfp4_reference
from mxfp4_cases import Mxfp4Layer, assert_mxfp4_close, integer_mxfp4_layer, random_mxfp4_layer
from plan_cases import skewed, with_counts, with_invalid

pytestmark = pytest.mark.gpu

GPT_OSS = Shape(32, 4, 2880, 2880)
SHAPES = [
    GPT_OSS,
    *(GPT_OSS._replace(inter=inter) for inter in (1472, 736)),  # shards of 2 and 4, as padded
    Shape(5, 3, 96, 160),  # rows and K end within a block
    Shape(5, 3, 32, 32),  # half a block of each
]
SMALL = Shape(16, 4, 512, 256)
PATHS = ["few", "many"]


def guarded_result(layer: Mxfp4Layer, path: str, activation: str = "swiglu") -> torch.Tensor:
    """fused_experts_mxfp4_out with every buffer poisoned and guarded, the inputs, too."""
    inputs = []
    for tensor in layer:
        guarded = Guarded(tuple(tensor.shape), tensor.dtype)
        guarded.buffer.copy_(tensor)
        inputs.append(guarded)
    tokens, top_k = layer.topk_ids.shape
    (experts, hidden), inter = layer.w2_bias.shape, layer.w13_bias.shape[1] // 2
    out = Guarded((tokens, hidden), torch.bfloat16)
    size = fused_experts_mxfp4_workspace_bytes(tokens, top_k, experts, hidden, inter)
    workspace = Guarded((size,), torch.uint8)
    torch.ops.layered_sglang.fused_experts_mxfp4_out(
        *(guarded.buffer for guarded in inputs), out.buffer, workspace.buffer, activation, path
    )
    assert all(guarded.guards_are_intact() for guarded in (*inputs, out, workspace))
    for guarded, tensor in zip(inputs, layer, strict=True):
        assert torch.equal(guarded.buffer.view(torch.uint8), tensor.view(torch.uint8))
    return out.buffer


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 40, 700])
def test_shapes(shape: Shape, tokens: int, path: str) -> None:
    layer = random_mxfp4_layer(shape, uniform_ids(tokens, shape), "cuda")
    assert_mxfp4_close(guarded_result(layer, path), layer)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_gemv_shapes(shape: Shape, tokens: int) -> None:
    layer = random_mxfp4_layer(shape, uniform_ids(tokens, shape), "cuda")
    assert_mxfp4_close(guarded_result(layer, "gemv"), layer)


@pytest.mark.parametrize("name", ["one token", "no valid id", "invalid ids", "duplicates in a row"])
def test_gemv_routings(name: str) -> None:
    layer = random_mxfp4_layer(SMALL, ROUTINGS[name], "cuda")
    assert_mxfp4_close(guarded_result(layer, "gemv"), layer)


def test_gemv_is_exact_on_integers() -> None:
    shape = Shape(6, 3, 288, 352)
    layer = integer_mxfp4_layer(shape, uniform_ids(20, shape), "cuda")
    result = guarded_result(layer, "gemv", "bilinear")
    assert torch.equal(result, fused_experts_mxfp4_reference(*layer, "bilinear"))
    assert result.abs().max() > 8


def test_gemv_refuses_what_does_not_fit() -> None:
    shape = Shape(32, 20, 96, 160)
    layer = random_mxfp4_layer(shape, uniform_ids(2, shape), "cuda")
    with pytest.raises(ValueError, match="path: gemv is for few pairs"):
        fused_experts_mxfp4(*layer, path="gemv")
    assert_mxfp4_close(fused_experts_mxfp4(*layer), layer)


ROUTINGS = {
    "one token": uniform_ids(1, SMALL),
    "all on one expert": torch.full((500, 4), 3, dtype=torch.int32),
    "two experts of many": torch.tensor([[15, 0]], dtype=torch.int32).repeat(333, 1),
    "no valid id": torch.full((40, 4), -1, dtype=torch.int32),
    "invalid ids": with_invalid(uniform_ids(300, SMALL), [-1, 16, 1 << 30, -(1 << 31)]),
    "skewed": skewed(2000, 4, 16),
    "duplicates in a row": uniform_ids(300, SMALL)[:, :1].repeat(1, 4).contiguous(),
    "counts at tiles": with_counts([15, 16, 17, 63, 64, 65, 80, 81, 127, 128, 129, 192, 193, 1, 0, 2]),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ROUTINGS)
def test_routings(name: str, path: str) -> None:
    layer = random_mxfp4_layer(SMALL, ROUTINGS[name], "cuda")
    assert_mxfp4_close(guarded_result(layer, path), layer)


def test_no_tokens() -> None:
    layer = random_mxfp4_layer(SMALL, torch.empty(0, 4, dtype=torch.int32), "cuda")
    assert fused_experts_mxfp4(*layer).shape == (0, SMALL.hidden)


@pytest.mark.parametrize("tokens", [2048, 5000])
def test_prefill(tokens: int) -> None:
    layer = random_mxfp4_layer(GPT_OSS, uniform_ids(tokens, GPT_OSS), "cuda")
    assert_mxfp4_close(guarded_result(layer, "auto"), layer)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("width", range(16, 193, 16))
def test_every_tile_width_is_exact_on_integers(width: int, path: str) -> None:
    shape = Shape(3, 1, 288, 352)
    layer = integer_mxfp4_layer(shape, with_counts([width, width - 1, width - 15]), "cuda")
    result = guarded_result(layer, path, "bilinear")
    assert torch.equal(result, fused_experts_mxfp4_reference(*layer, "bilinear"))
    assert result.abs().max() > 8


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
def test_a_block_takes_tasks_of_many_widths(order: int, path: str) -> None:
    """More tasks than blocks, so that what one task leaves in a block's memory meets the next."""
    shape = Shape(100, 1, 256, 512)
    layer = integer_mxfp4_layer(shape, with_counts(list(range(1, 201, 2))[::order]), "cuda")
    result = guarded_result(layer, path, "bilinear")
    assert torch.equal(result, fused_experts_mxfp4_reference(*layer, "bilinear"))


def test_every_scale_is_exact() -> None:
    """Groups of 32 with all the exponents that a bfloat16 sum of them still shows."""
    shape = Shape(2, 1, 256, 64)
    layer = integer_mxfp4_layer(shape, with_counts([40, 40]), "cuda")
    scales = layer.w13[..., 2048:]
    scales -= torch.arange(0, 64, 4, device="cuda", dtype=torch.uint8).repeat(8)
    expected = fused_experts_mxfp4_reference(*layer, "bilinear")
    for path in PATHS:
        torch.testing.assert_close(
            fused_experts_mxfp4(*layer, activation="bilinear", path=path),
            expected,
            rtol=0.01,
            atol=1e-3,
        )


@pytest.mark.parametrize("tokens", [1, 5, 64, 1024, 4096])
def test_repeats_bit_for_bit(tokens: int) -> None:
    shape = SMALL._replace(hidden=960, inter=480)
    layer = random_mxfp4_layer(shape, skewed(tokens, 4, 16), "cuda")
    first = fused_experts_mxfp4(*layer)
    for _ in range(20):
        assert torch.equal(fused_experts_mxfp4(*layer), first)


@pytest.mark.parametrize("tokens", [1, 64, 3000])
def test_graph_replays_with_another_routing(tokens: int) -> None:
    layer = random_mxfp4_layer(SMALL, uniform_ids(tokens, SMALL), "cuda")
    fused_experts_mxfp4(*layer)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = fused_experts_mxfp4(*layer)
    others = (
        skewed(tokens, 4, 16),
        torch.zeros(tokens, 4, dtype=torch.int32),
        torch.full((tokens, 4), -1, dtype=torch.int32),
        uniform_ids(tokens, SMALL, seed=1),
    )
    for other in others:
        layer.topk_ids.copy_(other)
        result.fill_(float("nan"))
        graph.replay()
        assert_mxfp4_close(result, layer)


def test_calls_follow_one_another_in_one_workspace() -> None:
    """Back to back, so that launches overlap as far as they may; the results are still each's own."""
    shape = SMALL._replace(hidden=960, inter=480)
    layers = [random_mxfp4_layer(shape, uniform_ids(64 + i, shape, i), "cuda", i) for i in range(3)]
    size = fused_experts_mxfp4_workspace_bytes(66, 4, 16, 960, 480)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    for path in ("gemv", *PATHS):
        expected = [fused_experts_mxfp4(*layer, path=path) for layer in layers]
        outs = [torch.empty_like(layer.x) for layer in layers]
        for _ in range(10):
            for layer, out in zip(layers, outs, strict=True):
                torch.ops.layered_sglang.fused_experts_mxfp4_out(
                    *layer, out, workspace, "swiglu", path
                )
        assert all(torch.equal(*pair) for pair in zip(outs, expected, strict=True))


@pytest.mark.parametrize("path", ["gemv", *PATHS])
def test_scales_and_writes_over_its_input(path: str) -> None:
    layer = random_mxfp4_layer(SMALL, with_invalid(uniform_ids(300, SMALL), [-1]), "cuda")
    expected = 2.5 * fused_experts_mxfp4(*layer, path=path).float()
    for _ in range(10):  # a kernel that starts early must not read what the last one has written
        x = layer.x.clone()
        assert fused_experts_mxfp4(x, *layer[1:], path=path, routed_scaling_factor=2.5, out=x) is x
        torch.testing.assert_close(x.float(), expected, rtol=0.01, atol=0.01)


def test_refuses_a_small_or_misaligned_workspace() -> None:
    layer = random_mxfp4_layer(SMALL, uniform_ids(8, SMALL), "cuda")
    needed = fused_experts_mxfp4_workspace_bytes(8, 4, 16, 512, 256)
    workspace = torch.empty(needed + 256, dtype=torch.uint8, device="cuda")
    out = torch.empty_like(layer.x)
    call = torch.ops.layered_sglang.fused_experts_mxfp4_out
    with pytest.raises(ValueError, match=f"workspace: expected .* at least {needed} bytes"):
        call(*layer, out, workspace[: needed - 1])
    with pytest.raises(ValueError, match="workspace: expected an address aligned to 256 bytes"):
        call(*layer, out, workspace[16:])
