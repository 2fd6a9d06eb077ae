"""Every supported architecture gives stock SGLang's tokens while its prompts are layered."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest
from harness import (
    Request,
    difference,
    free_port,
    generate,
    layered_command,
    running,
    stock_command,
)
from layered_sglang.executor.architectures import ARCHITECTURES

pytestmark = pytest.mark.server

#: Architecture -> preset; Qwen3-MoE is what test_scenarios.py serves.
PRESETS = {
    "Glm4MoeForCausalLM": "tiny-glm4-moe",
    "GptOssForCausalLM": "tiny-gpt-oss",
    "LlamaForCausalLM": "tiny-llama",
    "MixtralForCausalLM": "tiny-mixtral",
    "Qwen3ForCausalLM": "tiny-qwen3",
}


def test_every_architecture_is_tested():
    assert set(PRESETS) | {"Qwen3MoeForCausalLM"} == set(ARCHITECTURES)


def traffic() -> list[Request]:
    rng = random.Random(7)
    sizes = [(30, 400), (700, 20), (1500, 12), (5, 40), (400, 16), (2100, 8)]
    return [
        Request(
            tuple(rng.randrange(256) for _ in range(prompt)),
            output,
            (("ignore_eos", True),),
            logprob_start=0 if i % 2 else -1,
        )
        for i, (prompt, output) in enumerate(sizes)
    ]


async def send(server, gap: float):
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def one(i: int, request: Request):
            await asyncio.sleep(gap * i)
            return (await generate(session, server, request))[0]

        return await asyncio.gather(*(one(i, r) for i, r in enumerate(traffic())))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", PRESETS.values())
def test_tokens_are_stock_sglangs(preset, make_model, tmp_path):
    model = make_model(preset)
    with running(stock_command(model, free_port()), tmp_path / "stock.log") as server:
        wanted = asyncio.run(send(server, gap=0.0))
    flags = ["--layer-group-tokens", "150", "--layered-max-prefill-tokens", "1000"]
    command = layered_command(model, free_port(), *flags, "--enable-metrics")
    with running(command, tmp_path / "layered.log") as server:
        answers = asyncio.run(send(server, gap=0.2))
        server.wait_idle()
        assert server.held_tokens() == 0
        assert server.counters()["iterations:merged"] >= 8
    for i, (got, want) in enumerate(zip(answers, wanted, strict=True)):
        assert (problem := difference(got, want)) is None, f"request {i}: {problem}"
