"""What the MXFP4 fused experts' kernels alone do, on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from fused_experts_cases import Shape, uniform_ids
from gpu_formats import MXFP4
from layered_sglang.moe.mxfp4 import pack, unpack
from plan_cases import with_counts

pytestmark = pytest.mark.gpu


def test_gemv_sums_several_experts_exactly_on_integers() -> None:
    shape = Shape(6, 3, 288, 352)
    layer = MXFP4.integer_layer(shape, uniform_ids(20, shape), "cuda")
    result = MXFP4.guarded_result(shape, layer, "gemv", "bilinear")
    assert torch.equal(result, MXFP4.reference(*layer, "bilinear"))
    assert result.abs().max() > 8


def test_gemv_refuses_what_does_not_fit() -> None:
    shape = Shape(32, 20, 96, 160)
    layer = MXFP4.random_layer(shape, uniform_ids(2, shape), "cuda")
    with pytest.raises(ValueError, match="path: gemv is for few pairs"):
        MXFP4.call(*layer, path="gemv")
    MXFP4.assert_close(MXFP4.call(*layer), layer)


def test_stream_refuses_what_does_not_fit() -> None:
    shape = Shape(2, 1, 3104, 32)
    layer = MXFP4.random_layer(shape, uniform_ids(2, shape), "cuda")
    with pytest.raises(ValueError, match="path: stream is for hidden and inter up to 3072"):
        MXFP4.call(*layer, path="stream")
    MXFP4.assert_close(MXFP4.call(*layer), layer)


@pytest.mark.parametrize("path", MXFP4.gemms)
@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
def test_a_block_takes_tasks_of_many_widths(order: int, path: str) -> None:
    """More tasks than blocks, so that what one task leaves in a block's memory meets the next."""
    shape = Shape(100, 1, 256, 512)
    layer = MXFP4.integer_layer(shape, with_counts(list(range(1, 201, 2))[::order]), "cuda")
    result = MXFP4.guarded_result(shape, layer, path, "bilinear")
    assert torch.equal(result, MXFP4.reference(*layer, "bilinear"))


def test_every_scale_is_exact() -> None:
    """Groups of 32 with all the exponents that a bfloat16 sum of them still shows; a row has two."""
    shape = Shape(2, 1, 256, 64)
    layer = MXFP4.integer_layer(shape, with_counts([40, 40]), "cuda")
    values, scales = unpack(layer.w13, 128, 256, gate_up=True)
    rows = torch.arange(128, device="cuda")[:, None] % 14
    shifts = 4 * rows + 8 * (torch.arange(8, device="cuda") % 2)
    scales = (scales - shifts).clamp(min=0).to(torch.uint8)  # of groups of zeros it is 0
    layer.w13.copy_(pack(values, scales, gate_up=True))
    expected = MXFP4.reference(*layer, "bilinear")
    for path in MXFP4.gemms:
        torch.testing.assert_close(
            MXFP4.call(*layer, activation="bilinear", path=path), expected, rtol=0.01, atol=1e-3
        )
