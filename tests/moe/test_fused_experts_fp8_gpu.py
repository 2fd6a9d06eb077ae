"""The fp8 fused experts' kernels on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from fp8_cases import (
    MAX_RELATIVE_ERROR_OF_A_TOKEN,
    Fp8Layer,
    assert_fp8_close,
    integer_fp8_layer,
    random_fp8_layer,
)
from fused_experts_cases import Shape, uniform_ids
from guarded import Guarded
from layered_sglang.moe import fused_experts_fp8, fused_experts_fp8_workspace_bytes
from layered_sglang.moe.reference import fused_experts_fp8_fp32, fused_experts_fp8_reference
from plan_cases import skewed, with_counts, with_invalid

pytestmark = pytest.mark.gpu

QWEN = Shape(128, 8, 2048, 768)
SHAPES = [
    QWEN,
    *(QWEN._replace(inter=inter) for inter in (384, 128)),  # the shards that blocks of 128 allow
    Shape(16, 8, 7168, 2048),  # DeepSeek-V3, fewer experts
    Shape(8, 2, 4096, 1792),  # Mixtral, an eighth
    Shape(5, 3, 384, 256),  # w2's last tile has one block of rows
    Shape(5, 3, 128, 128),  # one block of K, less than one tile of w2
]
SMALL = Shape(16, 4, 512, 256)
PATHS = ["narrow", "wide"]


def guarded_result(layer: Fp8Layer, path: str, activation: str = "silu") -> torch.Tensor:
    """fused_experts_fp8_out with every buffer poisoned and guarded, the inputs, too."""
    inputs = []
    for tensor in layer:
        guarded = Guarded(tuple(tensor.shape), tensor.dtype)
        guarded.buffer.copy_(tensor)
        inputs.append(guarded)
    tokens, top_k = layer.topk_ids.shape
    experts, hidden, inter = layer.w2.shape
    out = Guarded((tokens, hidden), torch.bfloat16)
    size = fused_experts_fp8_workspace_bytes(tokens, top_k, experts, hidden, inter)
    workspace = Guarded((size,), torch.uint8)
    torch.ops.layered_sglang.fused_experts_fp8_out(
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
    layer = random_fp8_layer(shape, uniform_ids(tokens, shape), "cuda")
    assert_fp8_close(guarded_result(layer, path), layer)


ROUTINGS = {
    "one token": uniform_ids(1, SMALL),
    "all on one expert": torch.full((500, 4), 3, dtype=torch.int32),
    "two experts of many": torch.tensor([[15, 0]], dtype=torch.int32).repeat(333, 1),
    "no valid id": torch.full((40, 4), -1, dtype=torch.int32),
    "invalid ids": with_invalid(uniform_ids(300, SMALL), [-1, 16, 1 << 30, -(1 << 31)]),
    "skewed": skewed(2000, 4, 16),
    "duplicates in a row": uniform_ids(300, SMALL)[:, :1].repeat(1, 4).contiguous(),
    # A narrow tile holds up to 120 rows, a wide one two times 64; 64 is where widths become finer.
    "counts at tiles": with_counts([15, 16, 17, 64, 65, 72, 73, 119, 120, 121, 128, 129, 192, 193, 0]),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ROUTINGS)
def test_routings(name: str, path: str) -> None:
    layer = random_fp8_layer(SMALL, ROUTINGS[name], "cuda")
    assert_fp8_close(guarded_result(layer, path), layer)


def test_no_tokens() -> None:
    layer = random_fp8_layer(SMALL, torch.empty(0, 4, dtype=torch.int32), "cuda")
    assert fused_experts_fp8(*layer).shape == (0, SMALL.hidden)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [2048, 5000])
def test_prefill(tokens: int, path: str) -> None:
    layer = random_fp8_layer(QWEN, uniform_ids(tokens, QWEN), "cuda")
    assert_fp8_close(guarded_result(layer, path), layer)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
def test_a_block_takes_tasks_of_many_widths(order: int, path: str) -> None:
    """More tasks than blocks, so that what one task leaves in a block's memory meets the next."""
    shape = Shape(120, 1, 256, 512)
    layer = random_fp8_layer(shape, with_counts(list(range(1, 121))[::order]), "cuda")
    sizes = 10.0 ** torch.randint(-2, 3, (len(layer.x), 1), device="cuda")
    layer = layer._replace(x=(layer.x * sizes).bfloat16())
    result = guarded_result(layer, path)
    expected = fused_experts_fp8_fp32(*layer)
    errors = (result.float() - expected).norm(dim=1) / expected.norm(dim=1)  # the small rows', too
    assert errors.max() <= MAX_RELATIVE_ERROR_OF_A_TOKEN


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("width", range(8, 129, 8))
def test_every_tile_width_is_exact_on_integers(width: int, path: str) -> None:
    shape = Shape(3, 1, 256, 384)
    layer = integer_fp8_layer(shape, with_counts([width, width - 1, width - 7]), "cuda")
    result = guarded_result(layer, path, "bilinear")
    assert torch.equal(result, fused_experts_fp8_reference(*layer, "bilinear"))
    assert result.abs().max() > 8


@pytest.mark.parametrize("tokens", [1, 5, 64, 1024, 4096])
def test_repeats_bit_for_bit(tokens: int) -> None:
    layer = random_fp8_layer(QWEN, skewed(tokens, 8, 128), "cuda")
    first = fused_experts_fp8(*layer)
    for _ in range(20):
        assert torch.equal(fused_experts_fp8(*layer), first)


@pytest.mark.parametrize("tokens", [1, 64, 3000])
def test_graph_replays_with_another_routing(tokens: int) -> None:
    layer = random_fp8_layer(SMALL, uniform_ids(tokens, SMALL), "cuda")
    fused_experts_fp8(*layer)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = fused_experts_fp8(*layer)
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
        assert_fp8_close(result, layer)


def test_calls_follow_one_another_in_one_workspace() -> None:
    """Back to back, so that launches overlap as far as they may; the results are still each's own."""
    layers = [random_fp8_layer(QWEN, uniform_ids(64 + i, QWEN, i), "cuda", i) for i in range(3)]
    size = fused_experts_fp8_workspace_bytes(66, 8, 128, 2048, 768)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    for path in PATHS:
        expected = [fused_experts_fp8(*layer, path=path) for layer in layers]
        outs = [torch.empty_like(layer.x) for layer in layers]
        for _ in range(10):
            for layer, out in zip(layers, outs, strict=True):
                torch.ops.layered_sglang.fused_experts_fp8_out(*layer, out, workspace, "silu", path)
        assert all(torch.equal(*pair) for pair in zip(outs, expected, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_scales_and_writes_over_its_input(path: str) -> None:
    layer = random_fp8_layer(SMALL, with_invalid(uniform_ids(300, SMALL), [-1]), "cuda")
    expected = 2.5 * fused_experts_fp8(*layer, path=path).float()
    for _ in range(10):  # a kernel that starts early must not read what the last one has written
        x = layer.x.clone()
        assert fused_experts_fp8(x, *layer[1:], path=path, routed_scaling_factor=2.5, out=x) is x
        torch.testing.assert_close(x.float(), expected, rtol=0.01, atol=0.01)


def test_refuses_a_small_or_misaligned_workspace() -> None:
    layer = random_fp8_layer(SMALL, uniform_ids(8, SMALL), "cuda")
    needed = fused_experts_fp8_workspace_bytes(8, 4, 16, 512, 256)
    workspace = torch.empty(needed + 256, dtype=torch.uint8, device="cuda")
    out = torch.empty_like(layer.x)
    call = torch.ops.layered_sglang.fused_experts_fp8_out
    with pytest.raises(ValueError, match=f"workspace: expected .* at least {needed} bytes"):
        call(*layer, out, workspace[: needed - 1])
    with pytest.raises(ValueError, match="workspace: expected an address aligned to 256 bytes"):
        call(*layer, out, workspace[16:])
