"""Byte-level tokenizer: token id = byte value, then three special tokens.

Every text round-trips exactly, no vocabulary has to be trained or shipped, and a test can write
token ids down by hand.
"""

from __future__ import annotations

from typing import Any

BYTES = 256
END_OF_TEXT = "<|endoftext|>"
CHAT_START = "<|im_start|>"
CHAT_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, CHAT_START, CHAT_END)

END_OF_TEXT_ID = BYTES
CHAT_START_ID = BYTES + 1
CHAT_END_ID = BYTES + 2
TOKENS = BYTES + len(SPECIAL_TOKENS)

# What marks images and videos in the prompts of a model that takes them, with ids behind the others.
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VISION_START_ID, VISION_END_ID, IMAGE_ID, VIDEO_ID = range(TOKENS, TOKENS + len(VISION_TOKENS))

# Models round their vocabulary up to this, so that tensor parallelism divides it evenly.
VOCAB_ALIGNMENT = 64
VOCAB_SIZE = -(-(TOKENS + len(VISION_TOKENS)) // VOCAB_ALIGNMENT) * VOCAB_ALIGNMENT

# ChatML: one block per message, then the opening of the answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """Return the printable stand-in that byte-level tokenizers use for each of the 256 bytes.

    A byte that is a visible Latin-1 character stands for itself; the others (controls, spaces, soft
    hyphen) take the code points from U+0100 on, in order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(BYTES) if byte not in visible]
    stand_in = {byte: BYTES + position for position, byte in enumerate(hidden)}
    return [chr(stand_in.get(byte, byte)) for byte in range(BYTES)]


def tokenizer_json(images: bool = False) -> str:
    """Return the text of tokenizer.json; ``images``: with the tokens that mark them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
    # A BPE without merges leaves every byte its own token.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    # The split into words only serves merges.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = SPECIAL_TOKENS + (VISION_TOKENS if images else ())
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return tokenizer.to_str(pretty=True)


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """Return tokenizer_config.json of a model that takes max_length tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": None,
        "eos_token": CHAT_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [CHAT_START, CHAT_END],
        "add_bos_token": False,
        # The clean-up rewrites " ." as "." and would lose spaces.
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
