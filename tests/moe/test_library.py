"""Loading the operator library, and saying why it is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layered_sglang.moe import library, native_status


def fresh_status() -> library.NativeStatus:
    return native_status.__wrapped__()


def test_status_is_consistent() -> None:
    status = native_status()
    assert status.available or not status.cuda
    assert status.cuda == bool(status.architectures)
    assert bool(status.reason) == (not status.cuda)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ((True, True, ("sm_90a",), ""), "CPU and CUDA operators (sm_90a)"),
        ((True, False, (), "built without nvcc"), "CPU operators only, built without nvcc"),
        ((False, False, (), "no x.so"), "no compiled operators, no x.so"),
    ],
)
def test_description(status: tuple, text: str) -> None:
    assert library.NativeStatus(*status).describe() == text


def test_disabled_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERED_SGLANG_NATIVE", "0")
    assert fresh_status() == library.NativeStatus(
        False, False, (), "disabled by LAYERED_SGLANG_NATIVE=0"
    )


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAYERED_SGLANG_LIBRARY", str(tmp_path / "none.so"))
    assert fresh_status().reason == f"no {tmp_path / 'none.so'} (LAYERED_SGLANG_LIBRARY)"


def test_broken_library_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    monkeypatch.setenv("LAYERED_SGLANG_LIBRARY", str(broken))
    assert not fresh_status().available
    assert fresh_status().reason.startswith(f"{broken} cannot be loaded: ")


def test_built_for_another_torch(monkeypatch: pytest.MonkeyPatch, native: None) -> None:
    monkeypatch.setattr("torch.__version__", "9.9.9")
    status = fresh_status()
    assert not status.available
    assert status.reason.endswith("but this is torch 9.9.9")


def test_imports_without_sglang() -> None:
    code = "import sys, layered_sglang.moe; sys.exit('sglang' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_older_than_the_code_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, native: None
) -> None:
    def register() -> None:
        torch.library.register_fake("layered_sglang::an_operator_to_come")(lambda: None)

    monkeypatch.setattr(library, "_register_fakes", register)
    status = fresh_status()
    assert not status.available
    assert "an_operator_to_come does not exist" in status.reason
    assert status.reason.endswith("build it again")
