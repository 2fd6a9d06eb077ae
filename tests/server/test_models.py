"""Every supported architecture gives stock SGLang's tokens while its prompts are layered."""

from __future__ import annotations

import asyncio
import random

import pytest
from harness import (
    Request,
    difference,
    free_port,
    generate_all,
    layered_command,
    running,
    stock_command,
)
from layered_sglang.executor.architectures import ARCHITECTURES
from timed import run

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

#: Architecture -> preset; Qwen3-MoE is what test_scenarios.py serves.
PRESETS = {
    "DeepseekV2ForCausalLM": "tiny-deepseek-v2",
    "DeepseekV3ForCausalLM": "tiny-deepseek-v3",
    "Glm4MoeForCausalLM": "tiny-glm4-moe",
    "GptOssForCausalLM": "tiny-gpt-oss",
    "LlamaForCausalLM": "tiny-llama",
    "MixtralForCausalLM": "tiny-mixtral",
    "Qwen2MoeForCausalLM": "tiny-qwen2-moe",
    "Qwen3ForCausalLM": "tiny-qwen3",
}

_RNG = random.Random(7)
IGNORE_EOS = (("ignore_eos", True),)


def prompt(n: int) -> tuple[int, ...]:
    return tuple(_RNG.randrange(256) for _ in range(n))


STREAM = Request(prompt(30), 230, IGNORE_EOS, stream=True)
FIRST = Request(prompt(700), 20, IGNORE_EOS)
SCORED = Request(prompt(400), 16, IGNORE_EOS, logprob_start=0)
SHORT = Request(prompt(5), 40, IGNORE_EOS)
LONG = Request(prompt(2100), 8, IGNORE_EOS, logprob_start=0)  # three chunks
AGAIN = Request(FIRST.prompt + prompt(90), 12, IGNORE_EOS)  # behind what the radix cache has
GONE = [Request(prompt(2900), 8, IGNORE_EOS) for _ in range(3)]
ALL = [STREAM, FIRST, SCORED, SHORT, LONG, AGAIN]


def test_every_architecture_is_tested():
    assert set(PRESETS) | {"Qwen3MoeForCausalLM"} == set(ARCHITECTURES)


def compare(make_model, folder, preset, *flags: str) -> None:
    """Compare a layered server's answers, with ``flags``, to those of SGLang's own schedule."""
    model = make_model(preset)
    with running(stock_command(model, free_port(), *flags), folder / "stock.log") as server:
        answers = asyncio.run(generate_all(server, ALL))
        wanted = {request: answer for request, (answer,) in zip(ALL, answers, strict=True)}
    ours = ["--num-layer-groups", "8", "--layered-max-prefill-tokens", "1000", "--enable-metrics"]
    command = layered_command(model, free_port(), *ours, *flags)
    with running(command, folder / "layered.log") as server:
        answers, _ = run(
            server,
            STREAM,
            (10, FIRST, "first"),
            (30, SCORED, "scored"),
            (33, SHORT, "short"),
            (60, LONG, "long"),
            (120, AGAIN, "again"),
            *((150 + 20 * i, gone, f"gone{i}") for i, gone in enumerate(GONE)),
            # A chunk takes 8 iterations; how many of them pass before an abort arrives, nobody knows.
            actions=[
                (152 + 22 * i, 0.0, "/abort_request", {"rid": f"gone{i}"}) for i in range(len(GONE))
            ],
        )
        server.wait_idle()
        assert server.held_tokens() == 0
        counters = server.counters()
    assert counters["iterations:merged"] >= 40
    assert counters["aborted_cohorts"] >= 1
    assert {answers.pop(gone).finish for gone in GONE} == {"abort"}
    if "--disable-radix-cache" not in flags:
        assert answers[AGAIN].cached >= 600
    for request, got in answers.items():
        problem = difference(got, wanted[request])
        assert problem is None, f"prompt of {len(request.prompt)}: {problem}"


@pytest.mark.parametrize("preset", PRESETS.values())
def test_tokens_are_stock_sglangs(preset, make_model, tmp_path):
    compare(make_model, tmp_path, preset)


@pytest.mark.parametrize(
    "flags",
    [
        ["--disable-hybrid-swa-memory"],
        ["--disable-radix-cache"],
        ["--disable-overlap-schedule"],
    ],
    ids=" ".join,
)
def test_sliding_windows_whatever_holds_their_keys(flags, make_model, tmp_path):
    """One pool for all layers, two pools without a radix tree, two without overlap."""
    compare(make_model, tmp_path, "tiny-gpt-oss", *flags)
