"""The byte-level tokenizer loses nothing and renders chats."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layered_sglang.model_zoo import tokenizer as zoo_tokenizer


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder("tiny"))


def test_loads_as_a_fast_tokenizer(tokenizer) -> None:
    assert tokenizer.is_fast
    assert len(tokenizer) == zoo_tokenizer.TOKENS
    assert tokenizer.model_max_length == 8192


def test_special_tokens(tokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert ids == [256, 257, 258]
    assert tokenizer.eos_token_id == 258
    assert tokenizer.pad_token_id == 256
    assert tokenizer("<|im_end|>").input_ids == [258]


@given(text=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_text_survives_and_token_ids_are_its_bytes(tokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    if not any(special in text for special in zoo_tokenizer.SPECIAL_TOKENS):
        assert ids == list(text.encode("utf-8"))


@pytest.mark.parametrize("text", ["a  b . , don 't", " leading", "\r\n\t\x00", "Zürich 東京 🚀"])
def test_spaces_and_controls_survive(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_inside_a_text_survive(tokenizer) -> None:
    text = "<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == "user\nhi\n"


def test_every_byte_has_a_character_of_its_own() -> None:
    alphabet = zoo_tokenizer.byte_alphabet()
    assert len(set(alphabet)) == 256
    assert alphabet[ord("A")] == "A"
    assert alphabet[ord(" ")] == "Ġ"


def test_chat_template(tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    without_prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == without_prompt + "<|im_start|>assistant\n"
