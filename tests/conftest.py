"""What ``make test`` runs at once: two workers, a file at a time each. What it skips without a GPU.

Hypothesis draws the same examples in every run, and takes its time: a busy machine, or one that stands
still for a moment, is no failure of a pure function.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress

import pytest

with suppress(ImportError):  # some tests need no more than pytest
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "steady",
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("steady")

#: Each may run a server, with 4 GB and a core to itself.
WORKERS = 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    import torch

    # Two servers do not fit into one GPU: each takes most of its memory.
    return 0 if torch.cuda.is_available() else WORKERS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that may take longest come first, so that the workers end at about the same time."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(
            f"two workers would not agree on the name of {unstable[0]}; give ids"
        )
    longest: dict = defaultdict(int)
    for item in items:
        mark = item.get_closest_marker("timeout")
        if mark is not None:
            longest[item.path] = max(longest[item.path], mark.args[0])
    items.sort(key=lambda item: -longest[item.path])


def missing_gpu() -> str:
    """Why tests marked `gpu` cannot run here, or an empty string."""
    import torch

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
    from layered_sglang.moe import native_status

    assert native_status().cuda, f"a GPU, but no kernels: {native_status().reason}"
