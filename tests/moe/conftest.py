"""Marks and fixtures of the operator tests. Nothing here imports SGLang."""

from __future__ import annotations

import pytest
from layered_sglang.moe import native_status


@pytest.fixture
def native() -> None:
    """Skips a test of the compiled operators where they are not built."""
    status = native_status()
    if not status.available:
        pytest.skip(f"needs the compiled operators: {status.reason}")
