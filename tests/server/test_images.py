"""Prompts with images are SGLang's own to prefill, whatever layered prompts are half-way meanwhile; they
decode beside layer groups as all others do."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from half_way import check, settled
from harness import (
    Request,
    free_port,
    generate_all,
    layered_command,
    running,
    stock_command,
)
from pictures import IMAGE, picture
from timed import TRIES, run

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

_RNG = random.Random(29)
IGNORE_EOS = (("ignore_eos", True),)


def text(n: int) -> tuple[int, ...]:
    return tuple(_RNG.randrange(97, 123) for _ in range(n))


def about(shown: str, before: int, after: int, new: int) -> Request:
    return Request(text(before) + IMAGE + text(after), new, IGNORE_EOS, images=(shown,))


PICTURE = picture(_RNG, 256, 96)
STREAM = Request(text(30), 200, IGNORE_EOS, stream=True)
LONG = [Request(text(n), 8, IGNORE_EOS, logprob_start=0) for n in (2300, 1900)]
SEEN = about(PICTURE, 12, 20, 120)  # decodes while LONG is layered
OTHER = about(picture(_RNG, 96, 256), 12, 20, 12)  # the same text length, another picture
AGAIN = about(PICTURE, 5, 40, 12)
# In chunks, the first of which ends inside the picture.
CUT = about(picture(_RNG, 320, 320), 950, 700, 12)
ALL = [STREAM, *LONG, SEEN, OTHER, AGAIN, CUT]


@pytest.mark.parametrize("preset", ["tiny-qwen3.5-moe", "tiny-qwen3-vl-moe"])
def test_prompts_with_images_beside_layered_ones(make_model, tmp_path, preset):
    model = make_model(preset)
    # Without a GPU SGLang runs no overlap beside a radix cache of states.
    flags = ["--disable-radix-cache"]
    with running(stock_command(model, free_port(), *flags), tmp_path / "stock.log") as server:
        answers = asyncio.run(generate_all(server, ALL, at_once=1))
        wanted = {request: answer for request, (answer,) in zip(ALL, answers, strict=True)}
    assert wanted[SEEN].tokens[:12] != wanted[OTHER].tokens
    # A target that one layer beside decode breaks: one layer an iteration, and short prompts overtake.
    flags += ["--layered-max-prefill-tokens", "1000", "--itl-slo-ms", "4", "--enable-metrics"]
    flags += ["--enable-priority-scheduling"]
    with running(layered_command(model, free_port(), *flags), tmp_path / "layered.log") as server:
        # Between two chunks of the long prompt it goes first, however slow decode is here.
        urgent = replace(OTHER, priority=5)
        wanted[urgent] = wanted[OTHER]
        for _ in range(TRIES):
            before = server.counters()
            answers, _ = run(
                server,
                STREAM,
                (5, SEEN, "seen"),
                (12, LONG[0], "long0"),
                (15, urgent, "other"),
                (60, LONG[1], "long1"),
                (60, AGAIN, "again"),
                (100, CUT, "cut"),
            )
            after = settled(server)
            check(answers, wanted)
            new = {name: value - before[name] for name, value in after.items()}
            tokens = sum(len(request.prompt) for request in LONG)
            assert new["layered_tokens"] <= tokens, "a prompt with an image was layered"
            layered = new["layered_tokens"] == tokens and new["iterations:merged"] >= 24
            if layered and new["overtaking_cohorts"] > 0:
                return
    pytest.fail(f"no picture overtook a long prompt, or none was layered whole: {new}")
