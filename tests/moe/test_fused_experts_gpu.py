"""What the bf16 fused experts' kernels alone do, on a Hopper GPU."""

from __future__ import annotations

import pytest
import torch
from gpu_formats import BF16, QWEN
from plan_cases import skewed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("multiprocessors", [1, 40, 1000])
def test_grids_of_fewer_multiprocessors_give_the_same(multiprocessors: int) -> None:
    layer = BF16.random_layer(QWEN, skewed(3000, 8, 128), "cuda")
    for path in BF16.gemms:
        expected = BF16.call(*layer, path=path)
        torch.ops.layered_sglang.limit_multiprocessors(multiprocessors)
        try:
            assert torch.equal(BF16.call(*layer, path=path), expected)
        finally:
            torch.ops.layered_sglang.limit_multiprocessors(0)
