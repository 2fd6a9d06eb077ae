"""Cost profiles: what is written is read again, and a bad file is one clear line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import layered_sglang
import pytest
from layered_sglang.model_zoo.published import QWEN3_8B, QWEN3_30B_A3B
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.scheduling.profile import CostProfile, ProfileError, find_profile, model_key

PROFILE = CostProfile(
    device="NVIDIA H200",
    model=model_key(QWEN3_30B_A3B),
    attention="fa3",
    tp_size=1,
    coefficients=nominal_coefficients("H200")[0],
    spread=0.7,
    quality={"median_error": 0.03},
    made={"command": "python -m layered_sglang.calibrate"},
)


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "h200.json"
    PROFILE.write(path)
    assert CostProfile.read(path) == PROFILE


def test_the_profile_of_this_gpu_model_backend_and_tp_size_is_found(tmp_path):
    other = {"device": "NVIDIA H100", "model": "x", "attention": "triton", "tp_size": 2}
    for name, value in other.items():
        dataclasses.replace(PROFILE, **{name: value}).write(tmp_path / f"a_{name}.json")
    key = (PROFILE.device, PROFILE.model, PROFILE.attention, PROFILE.tp_size)
    assert find_profile(tmp_path, *key) is None
    PROFILE.write(tmp_path / "h200.json")
    assert find_profile(tmp_path, *key) == (PROFILE, tmp_path / "h200.json")


def test_every_profile_that_ships_is_found_by_its_gpu_and_model():
    folder = Path(layered_sglang.__file__).parent / "profiles"
    profiles = [CostProfile.read(path) for path in sorted(folder.glob("*.json"))]
    assert profiles
    models = {model_key(QWEN3_30B_A3B)}
    for profile in profiles:
        assert profile.model in models, "the key of a published config, or no server finds it"
        key = (profile.device, profile.model, profile.attention, profile.tp_size)
        found = find_profile(folder, *key)
        assert found is not None and found[0] == profile, "two profiles for one GPU and model"


def _without(name: str) -> str:
    record = dataclasses.asdict(PROFILE) | {"version": 1}
    del record["coefficients"][name]
    return json.dumps(record)


@pytest.mark.parametrize(
    "text, what",
    [
        ("not json", "no cost profile"),
        ("[]", "no cost profile"),
        ("{}", "no cost profile"),
        ('{"version": 99}', "version 99, expected 1"),
        (json.dumps(dataclasses.asdict(PROFILE) | {"version": 1, "colour": 1}), "colour"),
        (_without("kv_bandwidth"), "kv_bandwidth"),
        (
            json.dumps(dataclasses.asdict(PROFILE) | {"version": 1}).replace(
                '"layer_seconds": 8e-06', '"layer_seconds": -1'
            ),
            "coefficient layer_seconds must be a positive number, got -1",
        ),
    ],
)
def test_a_bad_file_is_one_line_that_names_it_and_the_way_out(tmp_path, text, what):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        CostProfile.read(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and what in message and "\n" not in message
    assert "python -m layered_sglang.calibrate" in message


def test_a_missing_file_is_one_line_too(tmp_path):
    with pytest.raises(ProfileError, match=r"none\.json: No such file or directory$"):
        CostProfile.read(tmp_path / "none.json")


def test_models_that_cost_differently_have_different_keys():
    keys = {model_key(QWEN3_30B_A3B), model_key(QWEN3_8B), model_key({})}
    assert len(keys) == 3
    assert model_key(QWEN3_30B_A3B) == "Qwen3MoeForCausalLM 48x2048 experts 128"
