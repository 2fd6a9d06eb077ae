"""The command: what it writes, what it prints, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from layered_sglang.make_model import main
from layered_sglang.model_zoo import PRESETS
from layered_sglang.model_zoo.folder import FILES

PUBLISHED = [name for name, preset in PRESETS.items() if not preset.random_weights]


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run the command, check that it exits with 2 and prints one line; return that line."""
    assert main([str(argument) for argument in argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.rstrip("\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_a_tiny_model(tmp_path, capsys) -> None:
    assert main(["tiny", str(tmp_path / "deep" / "model")]) == 0
    assert sorted(contents(tmp_path / "deep" / "model")) == sorted(FILES)
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4
    assert "2.02M parameters" in lines[0]
    assert lines[-1].endswith(f"--model-path {tmp_path}/deep/model")


@pytest.mark.parametrize("name", PUBLISHED)
def test_writes_a_published_architecture(name, tmp_path, capsys) -> None:
    from transformers import AutoConfig

    assert main([name, str(tmp_path / "model")]) == 0
    assert list(contents(tmp_path / "model")) == ["config.json"]
    printed = capsys.readouterr().out
    assert "no weights" in printed
    assert printed.rstrip().endswith("--load-format dummy --skip-tokenizer-init")

    config = AutoConfig.from_pretrained(tmp_path / "model")
    for field in ("hidden_size", "num_hidden_layers", "vocab_size", "num_key_value_heads"):
        assert getattr(config, field) == PRESETS[name].config[field]
    assert config.rope_parameters["rope_theta"] == PRESETS[name].config["rope_theta"]


def test_same_seed_writes_the_same_bytes(tmp_path) -> None:
    # In processes of their own, so that no hash order or library state is shared.
    for name, hash_seed in (("first", "1"), ("second", "2")):
        command = [sys.executable, "-m", "layered_sglang.make_model", "tiny", str(tmp_path / name)]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    main(["tiny", str(tmp_path / "other"), "--seed", "1"])
    first, second, other = (contents(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]
    assert first["tokenizer.json"] == other["tokenizer.json"]


def test_unknown_preset(tmp_path, capsys) -> None:
    line = refusal(capsys, "huge", tmp_path / "model")
    assert line == f"make_model: unknown preset 'huge'; there are: {', '.join(PRESETS)}"
    assert not (tmp_path / "model").exists()


def test_folder_with_files_in_it(tmp_path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    line = refusal(capsys, "qwen3-8b", tmp_path)
    assert line == f"make_model: {tmp_path} is not empty; --force writes into it all the same"
    assert list(contents(tmp_path)) == ["notes.txt"]


def test_force_replaces_an_earlier_model_and_keeps_the_rest(tmp_path) -> None:
    assert main(["tiny", str(tmp_path)]) == 0
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["qwen3-8b", str(tmp_path), "--force"]) == 0
    # Weights and tokenizer of the tiny model would not fit the new config.
    assert sorted(contents(tmp_path)) == ["config.json", "notes.txt"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"


def test_a_file_where_the_folder_should_be(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "model"):
        assert refusal(capsys, "tiny", path).endswith("is not a folder")


def test_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "write_text", refuse)
    line = refusal(capsys, "qwen3-8b", tmp_path / "model")
    assert line == f"make_model: cannot write {tmp_path / 'model'}: Permission denied"
