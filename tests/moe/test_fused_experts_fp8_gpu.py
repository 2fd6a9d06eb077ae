"""What the fp8 fused experts' kernels alone do, on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from fp8_cases import MAX_RELATIVE_ERROR_OF_A_TOKEN
from fused_experts_cases import Shape
from gpu_formats import FP8
from layered_sglang.moe.reference import fused_experts_fp8_fp32
from plan_cases import with_counts

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("path", FP8.paths)
@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
def test_a_block_takes_tasks_of_many_widths(order: int, path: str) -> None:
    """More tasks than blocks, so that what one task leaves in a block's memory meets the next."""
    shape = Shape(120, 1, 256, 512)
    layer = FP8.random_layer(shape, with_counts(list(range(1, 121))[::order]), "cuda")
    sizes = 10.0 ** torch.randint(-2, 3, (len(layer.x), 1), device="cuda")
    layer = layer._replace(x=(layer.x * sizes).bfloat16())
    result = FP8.guarded_result(shape, layer, path)
    expected = fused_experts_fp8_fp32(*layer)
    errors = (result.float() - expected).norm(dim=1) / expected.norm(dim=1)  # the small rows', too
    assert errors.max() <= MAX_RELATIVE_ERROR_OF_A_TOKEN
