"""Model folders for demos, tests and benchmarks: tiny random models and published architectures."""

from layered_sglang.model_zoo.folder import FolderError, WrittenModel, write_model
from layered_sglang.model_zoo.presets import PRESETS, Preset, UnknownPresetError, find_preset

__all__ = [
    "PRESETS",
    "FolderError",
    "Preset",
    "UnknownPresetError",
    "WrittenModel",
    "find_preset",
    "write_model",
]
