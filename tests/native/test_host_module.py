"""The compiled host-side module agrees with the Python side."""

from __future__ import annotations

import layered_sglang
import pytest
import torch
from layered_sglang.moe import native_status, plan_layout

_host = pytest.importorskip("layered_sglang._host", reason="built without the host module")


def test_limits_are_the_same() -> None:
    assert _host.MAX_EXPERTS == plan_layout.MAX_EXPERTS
    assert _host.MAX_ROW_ALIGNMENT == plan_layout.MAX_ROW_ALIGNMENT
    assert _host.MAX_PAIRS == plan_layout.MAX_PAIRS


@pytest.mark.parametrize("num_pairs", [0, 1, 7, 8, 9, 1000, 131072])
@pytest.mark.parametrize("num_experts", [1, 8, 512])
@pytest.mark.parametrize("row_alignment", [1, 3, 16, 256])
def test_capacity_is_the_same(num_pairs: int, num_experts: int, row_alignment: int) -> None:
    sizes = num_pairs, num_experts, row_alignment
    assert _host.padded_row_capacity(*sizes) == plan_layout.padded_row_capacity(*sizes)


def test_capacity_refuses_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"padded_row_capacity: expected .*, got 1, 0 and 1"):
        _host.padded_row_capacity(1, 0)


def test_build_facts() -> None:
    facts = _host.build_facts()
    assert facts["version"] == layered_sglang.__version__
    assert facts["cuda"] == bool(facts["cuda_architectures"]) == bool(facts["nvcc"])
    if native_status().available:
        assert facts["torch"] == torch.__version__
        assert tuple(facts["cuda_architectures"].split()) == native_status().architectures
