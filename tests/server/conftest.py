"""Fixtures shared by tests against real servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """``make_model(preset)``: folder of a tiny model, made once a run."""
    made: dict[str, Path] = {}

    def make(preset: str = "tiny") -> Path:
        if preset not in made:
            folder = tmp_path_factory.mktemp("models") / preset
            subprocess.run(
                [sys.executable, "-m", "layered_sglang.make_model", preset, str(folder)], check=True
            )
            made[preset] = folder
        return made[preset]

    return make
