"""The fused experts' kernels on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from fused_experts_cases import (
    Layer,
    Shape,
    assert_close,
    integer_layer,
    random_layer,
    uniform_ids,
)
from guarded import Guarded
from layered_sglang.moe import fused_experts, fused_experts_workspace_bytes
from layered_sglang.moe.reference import fused_experts_reference
from plan_cases import skewed, with_counts, with_invalid

pytestmark = pytest.mark.gpu

PATHS = ["gemv", "gemm", "gemm_pairs"]
GEMMS = PATHS[1:]
QWEN = Shape(128, 8, 2048, 768)
SHAPES = [
    QWEN,
    *(QWEN._replace(inter=inter) for inter in (384, 192, 96)),  # tensor-parallel shards
    Shape(32, 4, 2880, 2880),  # gpt-oss-20b: K and both outputs end within a tile
    Shape(8, 2, 4096, 1792),  # Mixtral, an eighth
    Shape(4, 2, 520, 328),  # inter a multiple of 8 only: gate's tail must not reach into up
    Shape(5, 3, 72, 48),  # less than one tile, and one block of K, everywhere
    Shape(512, 4, 512, 64),  # so many experts that their table takes a stage of the ring
]
SMALL = Shape(16, 4, 512, 256)


def guarded_result(layer: Layer, path: str, activation: str = "silu") -> torch.Tensor:
    """fused_experts_out with every buffer poisoned and guarded, the inputs, too."""
    inputs = []
    for tensor in layer:
        guarded = Guarded(tuple(tensor.shape), tensor.dtype)
        guarded.buffer.copy_(tensor)
        inputs.append(guarded)
    tokens, top_k = layer.topk_ids.shape
    experts, hidden, inter = layer.w2.shape
    out = Guarded((tokens, hidden), torch.bfloat16)
    size = fused_experts_workspace_bytes(tokens, top_k, experts, hidden, inter)
    workspace = Guarded((size,), torch.uint8)
    torch.ops.layered_sglang.fused_experts_out(
        *(guarded.buffer for guarded in inputs), out.buffer, workspace.buffer, activation, path
    )
    assert all(guarded.guards_are_intact() for guarded in (*inputs, out, workspace))
    for guarded, tensor in zip(inputs, layer, strict=True):
        assert torch.equal(guarded.buffer, tensor)
    return out.buffer


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: Shape, path: str) -> None:
    for tokens in (1, 6) if path == "gemv" else (1, 40, 700):
        layer = random_layer(shape, uniform_ids(tokens, shape), "cuda")
        assert_close(guarded_result(layer, path), layer)


ROUTINGS = {
    "one token": uniform_ids(1, SMALL),
    "all on one expert": torch.full((500, 4), 3, dtype=torch.int32),
    "two experts of many": torch.tensor([[15, 0]], dtype=torch.int32).repeat(333, 1),
    "no valid id": torch.full((40, 4), -1, dtype=torch.int32),
    "invalid ids": with_invalid(uniform_ids(300, SMALL), [-1, 16, 1 << 30, -(1 << 31)]),
    "skewed": skewed(2000, 4, 16),
    "duplicates in a row": uniform_ids(300, SMALL)[:, :1].repeat(1, 4).contiguous(),
    # A tile holds up to 192 rows; 64 is where its widths become finer.
    "counts at tiles": with_counts([15, 16, 17, 63, 64, 65, 72, 73, 191, 192, 193, 383, 384, 385, 0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ROUTINGS)
def test_routings(name: str, path: str) -> None:
    layer = random_layer(SMALL, ROUTINGS[name], "cuda")
    assert_close(guarded_result(layer, path), layer)


@pytest.mark.parametrize("path", PATHS)
def test_no_tokens(path: str) -> None:
    layer = random_layer(SMALL, torch.empty(0, 4, dtype=torch.int32), "cuda")
    assert fused_experts(*layer, path=path).shape == (0, SMALL.hidden)


@pytest.mark.parametrize("path", GEMMS)
@pytest.mark.parametrize("tokens", [2048, 5000])
def test_prefill(tokens: int, path: str) -> None:
    layer = random_layer(QWEN, uniform_ids(tokens, QWEN), "cuda")
    assert_close(guarded_result(layer, path), layer)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("width", range(8, 193, 8))
def test_every_tile_width_is_exact_on_integers(width: int, path: str) -> None:
    shape = Shape(3, 1, 256, 128)
    layer = integer_layer(shape, with_counts([width, width - 1, width - 7]), "cuda")
    result = guarded_result(layer, path, "bilinear")
    assert torch.equal(result, fused_experts_reference(*layer, "bilinear"))
    assert result.abs().max() > 8


@pytest.mark.parametrize("tokens", [1, 4, 5, 64, 1024, 4096])
def test_repeats_bit_for_bit(tokens: int) -> None:
    layer = random_layer(QWEN, skewed(tokens, 8, 128), "cuda")
    first = fused_experts(*layer)
    for _ in range(20):
        assert torch.equal(fused_experts(*layer), first)


@pytest.mark.parametrize("tokens", [1, 64, 3000])
def test_graph_replays_with_another_routing(tokens: int) -> None:
    layer = random_layer(SMALL, uniform_ids(tokens, SMALL), "cuda")
    fused_experts(*layer)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = fused_experts(*layer)
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
        assert_close(result, layer)


def test_calls_follow_one_another_in_one_workspace() -> None:
    """Back to back, so that launches overlap as far as they may; the results are still each's own."""
    layers = [random_layer(QWEN, uniform_ids(64 + i, QWEN, i), "cuda", i) for i in range(3)]
    expected = [fused_experts(*layer) for layer in layers]
    size = fused_experts_workspace_bytes(66, 8, 128, 2048, 768)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    for path in ("gemm", "gemm_pairs"):
        outs = [torch.empty_like(layer.x) for layer in layers]
        for _ in range(10):
            for layer, out in zip(layers, outs, strict=True):
                torch.ops.layered_sglang.fused_experts_out(*layer, out, workspace, "silu", path)
        assert all(torch.equal(*pair) for pair in zip(outs, expected, strict=True))


@pytest.mark.parametrize("multiprocessors", [1, 40, 1000])
def test_grids_of_fewer_multiprocessors_give_the_same(multiprocessors: int) -> None:
    layer = random_layer(QWEN, skewed(3000, 8, 128), "cuda")
    for path in ("gemm", "gemm_pairs"):
        expected = fused_experts(*layer, path=path)
        torch.ops.layered_sglang.limit_multiprocessors(multiprocessors)
        try:
            assert torch.equal(fused_experts(*layer, path=path), expected)
        finally:
            torch.ops.layered_sglang.limit_multiprocessors(0)


@pytest.mark.parametrize("path", PATHS)
def test_scales_and_writes_over_its_input(path: str) -> None:
    layer = random_layer(SMALL, with_invalid(uniform_ids(300, SMALL), [-1]), "cuda")
    expected = 2.5 * fused_experts(*layer, path=path).float()
    for _ in range(10):  # a kernel that starts early must not read what the last one has written
        x = layer.x.clone()
        assert fused_experts(x, *layer[1:], path=path, routed_scaling_factor=2.5, out=x) is x
        torch.testing.assert_close(x.float(), expected, rtol=0.01, atol=0.01)


def test_refuses_a_small_or_misaligned_workspace() -> None:
    layer = random_layer(SMALL, uniform_ids(8, SMALL), "cuda")
    needed = fused_experts_workspace_bytes(8, 4, 16, 512, 256)
    workspace = torch.empty(needed + 256, dtype=torch.uint8, device="cuda")
    out = torch.empty_like(layer.x)
    call = torch.ops.layered_sglang.fused_experts_out
    with pytest.raises(ValueError, match=f"workspace: expected .* at least {needed} bytes"):
        call(*layer, out, workspace[: needed - 1])
    with pytest.raises(ValueError, match="workspace: expected an address aligned to 256 bytes"):
        call(*layer, out, workspace[16:])
