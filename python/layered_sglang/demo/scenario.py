"""What is sent to whom, and when: the one place of the demo's numbers."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A way to schedule prefill.

    Attributes:
        name: for ``--only``.
        title: for the headings and the table.
        about: one line on what to look for in the drawing.
        flags: of ``layered_sglang.launch_server``.
    """

    name: str
    title: str
    about: str
    flags: tuple[str, ...]


SYSTEMS = (
    System(
        "layered",
        "layered prefill",
        "a prompt runs a few layers an iteration, and the chat decodes in every one",
        ("--prefill-schedule", "layered", "--layer-group-tokens", "512"),
    ),
    System(
        "chunked",
        "chunks of 512, mixed",
        "a prompt runs all layers, 512 tokens at a time, and each chunk visits all experts again",
        (
            *("--prefill-schedule", "chunked"),
            *("--chunked-prefill-size", "512", "--enable-mixed-chunk"),
        ),
    ),
    System(
        "prefill-first",
        "prefill first",
        "a prompt runs all layers at once, and the chat waits for it",
        ("--prefill-schedule", "chunked", "--chunked-prefill-size", "8192"),
    ),
)


@dataclass(frozen=True)
class LongPrompt:
    """A prompt of ``tokens`` tokens that arrives ``arrival`` seconds after the chat's first token."""

    letter: str
    tokens: int
    arrival: float


PROMPTS = (
    LongPrompt("A", 3000, 0.4),
    LongPrompt("B", 1500, 2.0),
    LongPrompt("C", 2500, 3.0),
    LongPrompt("D", 2000, 3.4),
)
PROMPT_OUTPUT_TOKENS = 4

#: The chat goes on until this many tokens after the last prompt's answer; at most to the limit.
CHAT_TAIL = 16
CHAT_LIMIT = 6000
CHAT_MESSAGES = ({"role": "user", "content": "Tell me about layers."},)

WARM_UP = LongPrompt("W", 1100, 0.0)


def prompt_text(prompt: LongPrompt) -> str:
    """Text of ``prompt.tokens`` tokens: the tiny model's tokens are bytes.

    Random, so that no prompt finds another's prefix in the cache; seeded, so that every system gets
    the same.
    """
    rng = random.Random(prompt.letter)
    return "".join(rng.choices(string.ascii_lowercase + " ", k=prompt.tokens))
