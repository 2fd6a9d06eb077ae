"""Marks and fixtures of the operator tests. Nothing here imports SGLang."""

from __future__ import annotations

import pytest
import torch
from layered_sglang.moe import native_status


def missing_gpu() -> str:
    """Why tests marked `gpu` cannot run here, or an empty string."""
    if not torch.cuda.is_available():
        return "needs a CUDA GPU of compute capability 9.0; there is none"
    capability = torch.cuda.get_device_capability()
    if capability != (9, 0):
        return f"needs a GPU of compute capability 9.0; this one has {capability}"
    return ""


@pytest.fixture(autouse=True)
def gpu_or_skip(request: pytest.FixtureRequest) -> None:
    """Skips `gpu` tests without a GPU. With one, kernels that are missing are a failure."""
    if request.node.get_closest_marker("gpu") is None:
        return
    reason = missing_gpu()
    if reason:
        pytest.skip(reason)
    assert native_status().cuda, f"a GPU, but no kernels: {native_status().reason}"


@pytest.fixture
def native() -> None:
    """Skips a test of the compiled operators where they are not built."""
    status = native_status()
    if not status.available:
        pytest.skip(f"needs the compiled operators: {status.reason}")
