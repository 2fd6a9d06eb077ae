"""The kernels compile for sm_90a without register spills, within their launch bounds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
KERNEL_FILES = sorted((ROOT / "src").rglob("*.cu"))
# Threads of the largest block; 65536 registers of a multiprocessor bound what each may use.
LARGEST_BLOCK = 1024

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc; there is none")


def ptxas_report(source: Path, cubin: Path) -> dict[str, str]:
    """What ptxas says about each kernel of a file, by mangled name."""
    command = [
        *(NVCC, "-std=c++17", "-O3", f"-I{ROOT / 'src'}"),
        *("-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v", "-cubin"),
        *(source, "-o", cubin),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    parts = re.split(r"Compiling entry function '(\w+)' for 'sm_90a'", result.stderr)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("source", KERNEL_FILES, ids=lambda path: path.name)
def test_no_spills(source: Path, tmp_path: Path) -> None:
    report = ptxas_report(source, tmp_path / "kernels.cubin")
    assert report, "ptxas reported no kernel"
    for kernel, text in report.items():
        spills = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        )
        registers = re.search(r"Used (\d+) registers", text)
        assert spills and registers, f"{kernel}: not understood:\n{text}"
        assert spills.groups() == ("0", "0", "0"), f"{kernel}: {spills[0]}"
        if "expert_plan" in kernel:
            assert int(registers[1]) <= 65536 // LARGEST_BLOCK, f"{kernel}: {registers[0]}"
