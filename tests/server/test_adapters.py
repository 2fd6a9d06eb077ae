"""LoRA: rows of several adapters and of none in one merged batch, and more adapters than places."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from adapters import RANK, adapter_paths
from bodies import STREAM, ask, body, expect_same
from harness import free_port, layered_command, running, stock_command
from layered_sglang.model_zoo import find_preset
from timed import TRIES

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

#: A running request's adapter, and those of prompts sent beside it: all places are taken twice.
ROUNDS = [("first", ["second", None]), ("third", ["first", "third"]), (None, ["second", "first"])]
PROMPTS = [[body(500 + 40 * i, new=10), body(700 + 30 * i, new=10)] for i in range(len(ROUNDS))]


def adapter_flags(folder: Path) -> list[str]:
    """Of a server with three random adapters, which are written to ``folder``."""
    paths = adapter_paths(find_preset("tiny").config, folder)
    return [
        *("--enable-lora", "--lora-backend", "torch_native", "--lora-paths", *paths),
        *("--max-lora-rank", str(RANK), "--max-loras-per-batch", "3", "--disable-radix-cache"),
    ]


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    return adapter_flags(tmp_path_factory.mktemp("adapters"))


async def play(server, beside: bool, attempt: int = 0) -> list[list[dict]]:
    """Answers to each round's prompts; beside its running request, or one after the other."""
    answers = []
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def stream(adapter, begun):
            sent = {**STREAM, "stream": True, "lora_path": adapter}
            async with session.post(server.url + "/generate", json=sent) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        last = json.loads(line[6:])
                        begun.set()
            return last

        for number, ((running_one, adapters), prompts) in enumerate(
            zip(ROUNDS, PROMPTS, strict=True)
        ):
            begun = asyncio.Event()
            first = asyncio.create_task(stream(running_one, begun))
            await (begun.wait() if beside else first)
            asked = [
                ask(session, server, prompt, lora_path=adapter, rid=f"{attempt}-{number}-{i}")
                for i, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True))
            ]
            if beside:
                others = await asyncio.gather(*asked)
            else:
                others = [await one for one in asked]
            answers.append([await first, *others])
    return answers


def test_layered_prompts_keep_their_adapters(flags, make_model, tmp_path):
    with running(stock_command(make_model(), free_port(), *flags), tmp_path / "stock") as server:
        wanted = asyncio.run(play(server, beside=False))
    trace = tmp_path / "trace.jsonl"
    ours = ("--num-layer-groups", "8", "--layered-trace-file", str(trace))
    command = layered_command(make_model(), free_port(), *flags, *ours)
    with running(command, tmp_path / "layered") as server:
        for attempt in range(TRIES):
            answers = asyncio.run(play(server, True, attempt))
            server.wait_idle()
            for got, want in zip(answers, wanted, strict=True):
                for a, b in zip(got, want, strict=True):
                    expect_same(a, b)
            lines = [json.loads(line) for line in trace.read_text().splitlines()]
            merged = [
                row[0] for line in lines if line["kind"] == "merged" for row in line["cohort"]
            ]
            if set(merged) >= {f"{attempt}-{i}-0" for i in range(len(ROUNDS))}:
                break
        else:
            pytest.fail("a prompt was not layered in any attempt")
    texts = {answer["text"] for round_ in wanted for answer in round_[:1]}
    assert len(texts) == len(ROUNDS), "the adapters change nothing"
