"""What the fused experts' kernels do in every format, on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from fused_experts_cases import Shape, uniform_ids
from gpu_formats import FORMATS, SMALL, Format
from plan_cases import skewed, with_counts, with_invalid

pytestmark = pytest.mark.gpu

EACH_FORMAT = pytest.mark.parametrize("kind", FORMATS, ids=str)
EACH_PATH = pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind in FORMATS for path in kind.paths], ids=str
)
EACH_GEMM = pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind in FORMATS for path in kind.gemms], ids=str
)


@pytest.mark.parametrize(
    ("kind", "shape"), [(kind, shape) for kind in FORMATS for shape in kind.shapes], ids=str
)
def test_shapes(kind: Format, shape: Shape) -> None:
    for path in kind.paths:
        for tokens in (1, 40, 700) if path in kind.gemms else (1, 2, 7):
            layer = kind.random_layer(shape, uniform_ids(tokens, shape), "cuda")
            kind.assert_close(kind.guarded_result(shape, layer, path), layer)


ROUTINGS = {
    "one token": uniform_ids(1, SMALL),
    "all on one expert": torch.full((500, 4), 3, dtype=torch.int32),
    "two experts of many": torch.tensor([[15, 0]], dtype=torch.int32).repeat(333, 1),
    "no valid id": torch.full((40, 4), -1, dtype=torch.int32),
    "invalid ids": with_invalid(uniform_ids(300, SMALL), [-1, 16, 1 << 30, -(1 << 31)]),
    "skewed": skewed(2000, 4, 16),
    "duplicates in a row": uniform_ids(300, SMALL)[:, :1].repeat(1, 4).contiguous(),
}


@EACH_PATH
@pytest.mark.parametrize("name", ROUTINGS)
def test_routings(name: str, kind: Format, path: str) -> None:
    layer = kind.random_layer(SMALL, ROUTINGS[name], "cuda")
    kind.assert_close(kind.guarded_result(SMALL, layer, path), layer)


@EACH_PATH
def test_counts_at_tiles(kind: Format, path: str) -> None:
    layer = kind.random_layer(SMALL, with_counts(kind.counts), "cuda")
    shape = SMALL._replace(top_k=1)
    kind.assert_close(kind.guarded_result(shape, layer, path), layer)


@EACH_PATH
def test_no_tokens(kind: Format, path: str) -> None:
    layer = kind.random_layer(SMALL, torch.empty(0, 4, dtype=torch.int32), "cuda")
    assert kind.call(*layer, path=path).shape == (0, SMALL.hidden)


@EACH_GEMM
@pytest.mark.parametrize("tokens", [2048, 5000])
def test_prefill(tokens: int, kind: Format, path: str) -> None:
    layer = kind.random_layer(kind.prefill, uniform_ids(tokens, kind.prefill), "cuda")
    kind.assert_close(kind.guarded_result(kind.prefill, layer, path), layer)


@EACH_PATH
def test_every_tile_width_is_exact_on_integers(kind: Format, path: str) -> None:
    for width in kind.widths:
        counts = [width, width - 1, max(width - 15, 1)]
        layer = kind.integer_layer(kind.exact, with_counts(counts), "cuda")
        result = kind.guarded_result(kind.exact, layer, path, "bilinear")
        assert torch.equal(result, kind.reference(*layer, "bilinear")), f"{width} rows"
        assert result.abs().max() > 8


@EACH_FORMAT
@pytest.mark.parametrize("tokens", [1, 4, 5, 64, 1024, 4096])
def test_repeats_bit_for_bit(tokens: int, kind: Format) -> None:
    shape = kind.repeated
    ids = skewed(tokens, shape.top_k, shape.num_experts)
    layer = kind.random_layer(shape, ids, "cuda")
    first = kind.call(*layer)
    for _ in range(20):
        assert torch.equal(kind.call(*layer), first)


@EACH_FORMAT
@pytest.mark.parametrize("tokens", [1, 64, 3000])
def test_graph_replays_with_another_routing(tokens: int, kind: Format) -> None:
    layer = kind.random_layer(SMALL, uniform_ids(tokens, SMALL), "cuda")
    kind.call(*layer)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = kind.call(*layer)
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
        kind.assert_close(result, layer)


@EACH_FORMAT
def test_calls_follow_one_another_in_one_workspace(kind: Format) -> None:
    """Back to back, so that launches overlap as far as they may; the results are still each's own."""
    shape = kind.repeated
    layers = [kind.random_layer(shape, uniform_ids(64 + i, shape, i), "cuda", i) for i in range(3)]
    workspace = torch.empty(kind.workspace_bytes(66, shape), dtype=torch.uint8, device="cuda")
    for path in kind.paths:
        expected = [kind.call(*layer, path=path) for layer in layers]
        outs = [torch.empty_like(layer.x) for layer in layers]
        for _ in range(10):
            for layer, out in zip(layers, outs, strict=True):
                kind.call_out(*layer, out, workspace, kind.activation, path)
        assert all(torch.equal(*pair) for pair in zip(outs, expected, strict=True))


@EACH_PATH
def test_scales_and_writes_over_its_input(kind: Format, path: str) -> None:
    layer = kind.random_layer(SMALL, with_invalid(uniform_ids(300, SMALL), [-1]), "cuda")
    expected = 2.5 * kind.call(*layer, path=path).float()
    for _ in range(10):  # a kernel that starts early must not read what the last one has written
        x = layer.x.clone()
        assert kind.call(x, *layer[1:], path=path, routed_scaling_factor=2.5, out=x) is x
        torch.testing.assert_close(x.float(), expected, rtol=0.01, atol=0.01)


@EACH_FORMAT
def test_refuses_a_small_or_misaligned_workspace(kind: Format) -> None:
    layer = kind.random_layer(SMALL, uniform_ids(8, SMALL), "cuda")
    needed = kind.workspace_bytes(8, SMALL)
    workspace = torch.empty(needed + 256, dtype=torch.uint8, device="cuda")
    out = torch.empty_like(layer.x)
    with pytest.raises(ValueError, match=f"workspace: expected .* at least {needed} bytes"):
        kind.call_out(*layer, out, workspace[: needed - 1])
    with pytest.raises(ValueError, match="workspace: expected an address aligned to 256 bytes"):
        kind.call_out(*layer, out, workspace[16:])
