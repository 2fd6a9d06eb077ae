"""SGLang's platform plugin for the CPU: what SGLang asks of a platform that is not its own."""

from __future__ import annotations

import torch
from layered_sglang.platforms.cpu import PortableCpuPlatform


def test_the_profiler_records_the_cpu() -> None:
    """/start_profile names activities as SGLang does for a GPU; what is missing would end the server."""
    platform = PortableCpuPlatform()
    activity = platform.get_torch_profiler_activity()
    assert activity is torch.profiler.ProfilerActivity.CPU
    assert (
        getattr(torch.profiler.ProfilerActivity, platform.get_torch_profiler_activity_str())
        is activity
    )
    with torch.profiler.profile(activities=[activity]) as profile:
        torch.ones(3).add_(1)
    assert any("add" in event.key for event in profile.key_averages())
