"""The published presets have the published size, and the registry names what it lacks."""

import pytest
from layered_sglang.model_zoo import PRESETS, UnknownPresetError, find_preset
from layered_sglang.model_zoo.tensors import (
    UnknownArchitectureError,
    count_parameters,
    experts,
    model_tensors,
    text_part,
)

# Totals in billions from the model cards. The active figure of Qwen3 counts the input embedding,
# those of gpt-oss and DeepSeek do not. Cards cut 3.35 to 3.3 and 2.45 to 2.4, so two digits are all
# there is to meet.
PUBLISHED_TOTALS = {
    "qwen3-30b-a3b": 30.5,
    "gpt-oss-20b": 20.9,
    "mixtral-8x7b": 46.7,
    "deepseek-v2-lite": 15.7,
    "qwen3-next-80b-a3b": 79.7,
    "qwen3-8b": 8.2,
}
PUBLISHED_ACTIVE = {
    "qwen3-30b-a3b": (3.3, True),
    "gpt-oss-20b": (3.6, False),
    "mixtral-8x7b": (12.9, True),
    "deepseek-v2-lite": (2.4, False),
}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_TOTALS.items())
def test_total_parameters_are_the_published_ones(name: str, billions: float) -> None:
    assert count_parameters(PRESETS[name].config).total == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize(("name", "published"), PUBLISHED_ACTIVE.items())
def test_active_parameters_are_the_published_ones(name: str, published: tuple[float, bool]) -> None:
    billions, with_embedding = published
    count = count_parameters(PRESETS[name].config)
    active = count.active if with_embedding else count.active - count.embedding
    assert active == pytest.approx(billions * 1e9, rel=0.025)


def test_a_dense_model_is_active_as_a_whole() -> None:
    count = count_parameters(PRESETS["qwen3-8b"].config)
    assert count.active == count.total


def test_every_published_preset_has_a_published_size() -> None:
    published = {name for name, preset in PRESETS.items() if not preset.random_weights}
    assert published == set(PUBLISHED_TOTALS)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_tensor_names_are_unique(preset) -> None:
    names = [spec.name for spec in model_tensors(preset.config)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "preset",
    [preset for preset in PRESETS.values() if preset.random_weights],
    ids=lambda preset: preset.name,
)
@pytest.mark.parametrize("parallel", [2, 4])
def test_tiny_models_divide_by_tensor_parallel_sizes(preset, parallel: int) -> None:
    config = text_part(preset.config)
    for field in ("vocab_size", "num_attention_heads"):
        assert config[field] % parallel == 0
    assert config.get("intermediate_size", parallel) % parallel == 0
    assert config.get("moe_intermediate_size", parallel) % parallel == 0
    heads = config["num_key_value_heads"]
    assert heads % parallel == 0 or parallel % heads == 0
    if "num_experts_per_tok" in config:
        assert experts(config) % parallel == 0


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(UnknownPresetError) as caught:
        find_preset("huge")
    assert str(caught.value) == f"unknown preset 'huge'; there are: {', '.join(PRESETS)}"


def test_unknown_architecture_is_refused() -> None:
    config = {**PRESETS["tiny"].config, "model_type": "gpt2"}
    with pytest.raises(UnknownArchitectureError, match=r"'gpt2'; known: .*qwen3_moe"):
        list(model_tensors(config))


def test_a_dense_model_has_no_experts() -> None:
    with pytest.raises(UnknownArchitectureError, match="no routed experts"):
        experts(PRESETS["tiny-llama"].config)
