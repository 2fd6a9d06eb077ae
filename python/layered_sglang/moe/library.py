"""Finds and loads the compiled operator library, once, and says what it can do.

Set LAYERED_SGLANG_NATIVE=0 to run without it, or LAYERED_SGLANG_LIBRARY to the path of another
build of it. Neither is read again after the first call.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch

LIBRARY_NAME = "liblayered_sglang_ops.so"


@dataclass(frozen=True)
class NativeStatus:
    """What the compiled library offers."""

    available: bool
    """The library is loaded: the CPU operators are there."""
    cuda: bool
    """It has CUDA kernels. Whether this GPU can run them: `has_kernels_for`."""
    architectures: tuple[str, ...]
    """The GPU architectures it has kernels for, as ("sm_90a",)."""
    reason: str
    """Why the library or its kernels are missing; empty when both are there."""

    def describe(self) -> str:
        """One phrase for a start-up message or a report."""
        if self.cuda:
            return f"CPU and CUDA operators ({', '.join(self.architectures)})"
        if self.available:
            return f"CPU operators only, {self.reason}"
        return f"no compiled operators, {self.reason}"


@functools.cache
def native_status() -> NativeStatus:
    """Loads the library on the first call; later calls return the same."""
    if os.environ.get("LAYERED_SGLANG_NATIVE") == "0":
        return _unavailable("disabled by LAYERED_SGLANG_NATIVE=0")
    chosen = os.environ.get("LAYERED_SGLANG_LIBRARY")
    path = Path(chosen) if chosen else Path(__file__).parent.parent / "lib" / LIBRARY_NAME
    if not path.is_file():
        why = "LAYERED_SGLANG_LIBRARY" if chosen else "built as pure Python"
        return _unavailable(f"no {path} ({why})")
    mismatch = _torch_mismatch(chosen is not None)
    if mismatch:
        return _unavailable(mismatch)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return _unavailable(f"{path} cannot be loaded: {error}")

    built_for = torch.ops.layered_sglang.torch_version()
    if built_for != torch.__version__:
        return _unavailable(_mismatch_text(built_for))
    try:
        _register_fakes()
    except RuntimeError as error:
        return _unavailable(f"{path} is older than this Python code ({error}); build it again")
    architectures = tuple(torch.ops.layered_sglang.cuda_architectures().split())
    reason = "" if architectures else "built without nvcc"
    return NativeStatus(True, bool(architectures), architectures, reason)


@functools.cache
def has_kernels_for(device: torch.device) -> bool:
    """Whether the compiled operators run on this device (CPU, or a GPU of a built architecture)."""
    status = native_status()
    if device.type == "cpu":
        return status.available
    if device.type != "cuda" or not status.cuda:
        return False
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}a" in status.architectures


def _unavailable(reason: str) -> NativeStatus:
    return NativeStatus(available=False, cuda=False, architectures=(), reason=reason)


def _torch_mismatch(library_was_chosen: bool) -> str:
    """The mismatch, if one is known before loading: a library for another torch may not load."""
    if library_was_chosen:
        return ""
    try:
        from layered_sglang import _host
    except ImportError:
        return ""  # built for another Python, or without the module; loading will tell
    built_for = _host.build_facts()["torch"]
    return "" if built_for == torch.__version__ else _mismatch_text(built_for)


def _mismatch_text(built_for: str) -> str:
    return f"built for torch {built_for}, but this is torch {torch.__version__}"


def _register_fakes() -> None:
    from . import fakes  # noqa: F401  registers on import; the schemas must be there already
