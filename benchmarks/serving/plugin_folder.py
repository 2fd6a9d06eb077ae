"""Makes this folder's plugins, and layered_sglang's own, known to the SGLang servers of a benchmark."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from pathlib import Path

import layered_sglang

HERE = Path(__file__).resolve().parent
LAYERED_SGLANG = (
    "[sglang.srt.plugins]\nlayered_sglang = layered_sglang.hooks:activate\n"
    "[sglang.srt.platforms]\nlayered_sglang_cpu = layered_sglang.platforms:activate\n"
)


def python_path(*modules: str) -> str:
    """``PYTHONPATH`` for the servers, also where nothing is installed.

    Args:
        modules: of this folder; each has an ``activate`` that SGLang shall call.
    """
    folder = Path(tempfile.mkdtemp())
    texts = {name: f"[sglang.srt.plugins]\n{name} = {name}:activate\n" for name in modules}
    for name, text in {"layered_sglang": LAYERED_SGLANG, **texts}.items():
        if importlib.metadata.entry_points(group="sglang.srt.plugins", name=name):
            continue
        version = layered_sglang.__version__
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(text)
    return os.pathsep.join([str(folder), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
