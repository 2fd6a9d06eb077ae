"""SGLang's out-of-tree platform for machines without a GPU."""

from __future__ import annotations

import argparse
import os

from layered_sglang.launched import launched_by_us

#: Name of the entry point, for ``SGLANG_PLATFORM``.
NAME = "layered_sglang_cpu"


def activate() -> str | None:
    """Entry point ``sglang.srt.platforms``: the class to use, or ``None`` to stay out of the way.

    Active when ``SGLANG_PLATFORM`` names it, or when our launcher runs where no GPU is.
    """
    return "layered_sglang.platforms.cpu.PortableCpuPlatform" if active() else None


def active() -> bool:
    chosen = os.environ.get("SGLANG_PLATFORM")
    if chosen:
        return chosen == NAME
    return launched_by_us() and not _gpu_present()


def fill_defaults(namespace: argparse.Namespace) -> None:
    """The one flag that SGLang cannot fill in by itself before it asks the platform."""
    if active() and namespace.device is None:
        namespace.device = "cpu"


def _gpu_present() -> bool:
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()
