"""The compiled kernels keep everything in registers, within their launch bounds."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from layered_sglang.moe import library, native_status

SOURCES = Path(__file__).parents[2] / "src"
# Threads of the largest block; 65536 registers of a multiprocessor bound what each may use.
LARGEST_BLOCK = 1024


def cuobjdump() -> str:
    """The CUDA toolkit's, or the one that Triton brings."""
    triton = Path(find_spec("triton").origin).parent
    folders = [None, "/usr/local/cuda/bin", triton / "backends" / "nvidia" / "bin"]
    return next(found for path in folders if (found := shutil.which("cuobjdump", path=path)))


@pytest.fixture(scope="module")
def usage() -> dict[str, dict[str, int]]:
    """Mangled kernel name -> what it uses: registers (REG), bytes of stack (STACK), ..."""
    if not native_status().cuda:
        pytest.skip(f"needs the compiled kernels: {native_status().reason}")
    (path,) = [path for path in torch.ops.loaded_libraries if library.LIBRARY_NAME in path]
    result = subprocess.run([cuobjdump(), "-res-usage", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    parts = re.split(r"Function (\w+):", result.stdout)
    return {
        kernel: {name: int(value) for name, value in re.findall(r"(\w+)(?:\[\d\])?:(\d+)", text)}
        for kernel, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_every_kernel_is_compiled(usage) -> None:
    heads = "".join(path.read_text() for path in SOURCES.rglob("*.cu*"))
    names = re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", heads)
    assert names and heads.count("__global__") == len(names)
    for name in names:
        assert any(f"{len(name)}{name}" in kernel for kernel in usage), f"no {name} in {usage}"


def test_no_spills(usage) -> None:
    """What does not fit into the registers goes to the stack."""
    for kernel, used in usage.items():
        assert used["STACK"] == used["LOCAL"] == 0, f"{kernel}: {used}"
        if "expert_plan" in kernel:
            assert used["REG"] <= 65536 // LARGEST_BLOCK, f"{kernel}: {used}"
