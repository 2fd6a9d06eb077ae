"""Prompts that the server sends itself before it is ready, so that no user waits for a compiler.

SGLang compiles kernels at their first use, for up to a second each, and CUDA loads a library's kernel at
its first use, for which the host may have to wait until the GPU is idle. Which kernels run depends on
the number of rows. SGLang's own warm-up sends one short request; iterations that hold a layer group would
do all that under the first users' requests.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sglang.srt.entrypoints.warmup import warmup
from sglang.srt.managers.io_struct import GenerateReqInput

from layered_sglang.config import WARM_UP
from layered_sglang.hooks.server_args import layered_config

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

#: Through graphs (up to 4096 rows, by default) and launched eagerly; few are multiples of anything.
PROMPT_TOKENS = (300, 1500, 3000, 4257, 4611, 5087, 5438, 5474, 6145, 6731, 7001, 7686, 8192)
#: Requests that decode meanwhile, and after how many prompts each begins: batches of several sizes.
DECODING = (0, 3, 6, 9)


@warmup(WARM_UP)
async def warm_up(_disaggregation_mode: str, tokenizer_manager: TokenizerManager) -> None:
    """Prompts of several lengths, one after the other, beside requests that decode all the while."""
    longest = tokenizer_manager.max_req_input_len // 2
    most = min(layered_config(tokenizer_manager.server_args).layered_max_prefill_tokens, longest)
    prompts = sorted({min(tokens, most) for tokens in PROMPT_TOKENS})
    prompts.append(min(most + most // 2, longest))  # cut: its second part has a prefix in the cache
    running: dict[str, asyncio.Task[None]] = {}
    for i, tokens in enumerate(prompts):
        if i in DECODING:
            await _decode(tokenizer_manager, f"layered-warm-up-{len(running)}", running)
        await _run(tokenizer_manager, tokens, 2)
    for rid, task in running.items():
        tokenizer_manager.abort_request(rid=rid)
        await task
    await tokenizer_manager.flush_cache()
    # What lives now lives as long as the server: close to a million objects in the scheduler. Python's
    # collector would look at all of them again and again, and nobody gets a token meanwhile.
    await tokenizer_manager.freeze_gc()


async def _decode(
    tokenizer_manager: TokenizerManager, rid: str, running: dict[str, asyncio.Task[None]]
) -> None:
    """Start one more request that decodes, and wait for its first token."""
    started = asyncio.Event()
    task = asyncio.create_task(_run(tokenizer_manager, 8, 4000 >> len(running), rid, started))
    running[rid] = task
    await asyncio.wait({task, asyncio.create_task(started.wait())}, return_when="FIRST_COMPLETED")


async def _run(
    tokenizer_manager: TokenizerManager,
    prompt_tokens: int,
    answer_tokens: int,
    rid: str | None = None,
    started: asyncio.Event | None = None,
) -> None:
    """One request to its end; ``started`` is set at its first token."""
    limit = tokenizer_manager.model_config.context_len - prompt_tokens - 8
    request = GenerateReqInput(
        rid=rid,
        # Another first token each: none finds another's prefix in the cache.
        input_ids=[prompt_tokens % 97 + 1] + [1] * (prompt_tokens - 1),
        sampling_params={
            "max_new_tokens": min(answer_tokens, limit),
            "temperature": 0.0,
            "ignore_eos": True,
        },
        stream=started is not None,
    )
    async for _ in tokenizer_manager.generate_request(request, None):
        if started is not None:
            started.set()
