"""A test's own SGLang plugin: the model looks as if its experts were in our MXFP4 layout, which needs a
GPU; nothing computes with it."""

from __future__ import annotations

import os
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType


def _mark(_result: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    """After ``ModelRunner.load_model``."""
    runner.model.w13_packed = None


def activate() -> None:
    """Entry point ``sglang.srt.plugins``; does nothing outside scheduler processes of the test."""
    from layered_sglang.hooks import registration

    if "PACKED_EXPERTS" in os.environ and registration.in_scheduler_process:
        HookRegistry.register(
            "sglang.srt.model_executor.model_runner.ModelRunner.load_model", _mark, HookType.AFTER
        )
