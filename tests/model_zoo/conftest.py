"""Model folders, each written once per test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from layered_sglang.model_zoo import find_preset, write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder of a preset, written at the first call."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            directory = tmp_path_factory.mktemp("models") / name
            written[name] = write_model(find_preset(name), directory).directory
        return written[name]

    return folder
