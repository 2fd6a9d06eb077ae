"""The tiny models load whole, decode stably and depend on their prompts."""

from __future__ import annotations

import json

import pytest
import torch
from layered_sglang.model_zoo import PRESETS
from layered_sglang.model_zoo.tensors import count_parameters

#: Without those whose language model transformers does not load alone: ``test_by_layer_groups.py``
#: compares their logits.
TINY = [
    name
    for name, preset in PRESETS.items()
    if preset.random_weights and preset.config["model_type"] != "qwen3_vl_moe"
]
PROMPTS = [
    "Hello",
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a land far away, there lived a",
]
NEW_TOKENS = 32


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads only wait for each other at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=TINY)
def loaded(request, model_folder):
    """Folder, model and what transformers said about the loading."""
    from transformers import AutoModelForCausalLM

    folder = model_folder(request.param)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    return folder, model.eval(), info


@pytest.fixture(scope="module")
def continuations(loaded):
    """Greedy continuation of every prompt, and the gaps between the two best logits."""
    _, model, _ = loaded
    tokens, gaps = [], []
    for prompt in PROMPTS:
        ids = torch.tensor([list(prompt.encode())])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens.append(output.sequences[0, ids.shape[1] :].tolist())
        best = torch.cat(output.logits).topk(2).values
        gaps += (best[:, 0] - best[:, 1]).tolist()
    return tokens, torch.tensor(gaps)


def test_loads_with_all_weights_used(loaded) -> None:
    _, model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.dtype == torch.float32


def test_parameter_count_is_the_models(loaded) -> None:
    folder, model, _ = loaded
    config = json.loads((folder / "config.json").read_text())
    # The correction bias of GLM's router is a buffer there.
    buffers = sum(
        buffer.numel() for name, buffer in model.named_buffers() if "correction_bias" in name
    )
    assert count_parameters(config).total == model.num_parameters() + buffers


def test_folder_is_small(loaded) -> None:
    folder, _, _ = loaded
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6


def test_either_end_token_ends_a_generation(loaded) -> None:
    _, model, _ = loaded
    assert model.generation_config.eos_token_id == [258, 256]


def test_greedy_margins_are_clear(continuations) -> None:
    _, gaps = continuations
    assert gaps.median() > 0.5
    assert (gaps < 1e-3).float().mean() < 0.01


def test_continuations_depend_on_the_prompt(continuations) -> None:
    tokens, _ = continuations
    assert len({tuple(sequence[-8:]) for sequence in tokens}) == len(PROMPTS)


def test_continuations_do_not_collapse(continuations) -> None:
    tokens, _ = continuations
    for sequence in tokens:
        assert len(set(sequence)) >= 8


def test_end_tokens_are_rare_and_padding_ids_never_come(continuations) -> None:
    tokens, _ = continuations
    generated = [token for sequence in tokens for token in sequence]
    assert sum(token >= 256 for token in generated) <= len(generated) // 50
    assert max(generated) <= 258
