"""A pure-Python wheel: what it contains, and that nothing of an earlier build gets in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")
ROOT = Path(__file__).parents[2]


def build_wheel(tree: Path, native: str) -> subprocess.CompletedProcess[str]:
    """Builds into tree/dist with the build backend itself (no pip, no network)."""
    return subprocess.run(
        [sys.executable, "-c", "from setuptools.build_meta import *; build_wheel('dist')"],
        cwd=tree,
        env={**os.environ, "LAYERED_SGLANG_NATIVE": native},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The sources a wheel is made of, with a library of an earlier build among them."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "python",
        tmp_path / "python",
        ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"),
    )
    stale = tmp_path / "python" / "layered_sglang" / "lib" / "liblayered_sglang_ops.so"
    stale.parent.mkdir(exist_ok=True)
    stale.touch()
    return tmp_path


def test_pure_python_wheel(tree: Path) -> None:
    result = build_wheel(tree, "0")
    assert result.returncode == 0, result.stderr
    assert "layered_sglang: pure Python, LAYERED_SGLANG_NATIVE=0" in result.stdout
    (wheel,) = (tree / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    assert "layered_sglang/moe/plan.py" in names
    assert "layered_sglang/py.typed" in names
    assert "layered_sglang/bench/scenarios/quick.yaml" in names
    assert "layered_sglang/profiles/h100-80gb-hbm3-qwen3-30b-a3b-fa3.json" in names


def test_unknown_choice_is_refused(tree: Path) -> None:
    result = build_wheel(tree, "yes")
    assert result.returncode != 0
    assert 'LAYERED_SGLANG_NATIVE: expected auto, cuda, cpu or 0, got "yes"' in result.stderr
