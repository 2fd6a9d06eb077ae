"""Writes a preset's model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from layered_sglang.model_zoo import tokenizer
from layered_sglang.model_zoo.block_scaled import is_block_scaled, write_block_scaled
from layered_sglang.model_zoo.presets import Preset
from layered_sglang.model_zoo.tensors import text_part
from layered_sglang.model_zoo.vision import processor_config
from layered_sglang.model_zoo.weights import random_weights

# config.json comes last: a folder whose writing was cut off does not pass for a model.
FILES = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "config.json",
)
#: Of a model that takes images, before config.json.
IMAGE_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


class FolderError(Exception):
    """The folder cannot be written; the message is one line for the user."""


@dataclass(frozen=True)
class WrittenModel:
    """What write_model wrote: the files' names and their bytes together."""

    directory: Path
    files: tuple[str, ...]
    bytes: int


def write_model(
    preset: Preset, directory: Path, *, seed: int = 0, force: bool = False
) -> WrittenModel:
    """Write the preset's model folder, making the directory where it does not exist.

    force: write into a folder that is not empty, replacing what an earlier make_model wrote there;
        other files stay.
    Raises FolderError when the folder is not empty, is no folder, or cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            if not force:
                raise FolderError(f"{directory} is not empty; --force writes into it all the same")
            for name in (*FILES, *IMAGE_FILES):
                (directory / name).unlink(missing_ok=True)
        write = _write_random_model if preset.random_weights else _write_config
        files = write(preset, directory, seed)
        size = sum((directory / name).stat().st_size for name in files)
    except (FileExistsError, NotADirectoryError) as error:
        raise FolderError(f"{error.filename or directory} is not a folder") from error
    except OSError as error:
        raise FolderError(f"cannot write {directory}: {error.strerror or error}") from error
    return WrittenModel(directory, files, size)


def _write_config(preset: Preset, directory: Path, seed: int) -> tuple[str, ...]:
    _write_json(directory / "config.json", preset.config)
    return ("config.json",)


def _write_random_model(preset: Preset, directory: Path, seed: int) -> tuple[str, ...]:
    config, text = preset.config, text_part(preset.config)
    vision = config.get("vision_config")
    writers: dict[str, Callable[[Path], None]] = {
        "model.safetensors": lambda path: _write_weights(path, config, seed),
        "tokenizer.json": lambda path: _write_text(
            path, tokenizer.tokenizer_json(images=vision is not None)
        ),
        "tokenizer_config.json": lambda path: _write_json(
            path, tokenizer.tokenizer_config(text["max_position_embeddings"])
        ),
        "generation_config.json": lambda path: _write_json(path, _generation_config(text)),
        "config.json": lambda path: _write_json(path, config),
    }
    files: tuple[str, ...] = FILES
    if vision is not None:
        for name in IMAGE_FILES:
            content = processor_config(vision, video=name.startswith("video"))
            writers[name] = partial(_write_json, content=content)
        files = (*FILES[:-1], *IMAGE_FILES, FILES[-1])
    for name in files:
        writers[name](directory / name)
    return files


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    # Either token ends a generation, as in the Qwen3 chat models.
    return {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": [tokenizer.CHAT_END_ID, tokenizer.END_OF_TEXT_ID],
        "pad_token_id": config["pad_token_id"],
    }


def _write_weights(path: Path, config: Mapping[str, Any], seed: int) -> None:
    if is_block_scaled(config):
        return write_block_scaled(path, config, seed)
    from safetensors.numpy import save

    # NOTE: transformers refuses a file whose metadata does not name a framework.
    path.write_bytes(save(random_weights(config, seed), metadata={"format": "pt"}))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(dict(content), indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
