"""Prompts that the server sends itself before it is ready, so that no user waits for a compiler.

SGLang compiles kernels at their first use, for up to a second each. Its own warm-up sends one short
request; iterations that hold a layer group would compile theirs under the first users' requests.
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

PROMPT_TOKENS = (300, 1500, 3000, 5000, 8192)
_DECODING = "layered-warm-up"


@warmup(WARM_UP)
async def warm_up(_disaggregation_mode: str, tokenizer_manager: TokenizerManager) -> None:
    """Prompts of several lengths, one after the other, beside a request that decodes all the while."""
    most = min(
        layered_config(tokenizer_manager.server_args).layered_max_prefill_tokens,
        tokenizer_manager.max_req_input_len // 2,
    )
    decoding = asyncio.Event()
    running = asyncio.create_task(_run(tokenizer_manager, 8, 4000, decoding))
    await asyncio.wait(
        {running, asyncio.create_task(decoding.wait())}, return_when="FIRST_COMPLETED"
    )
    for tokens in sorted({min(tokens, most) for tokens in PROMPT_TOKENS}):
        await _run(tokenizer_manager, tokens, 2)
    tokenizer_manager.abort_request(rid=_DECODING)
    await running
    await tokenizer_manager.flush_cache()
    # What lives now lives as long as the server: close to a million objects in the scheduler. Python's
    # collector would look at all of them again and again, and nobody gets a token meanwhile.
    await tokenizer_manager.freeze_gc()


async def _run(
    tokenizer_manager: TokenizerManager,
    prompt_tokens: int,
    answer_tokens: int,
    started: asyncio.Event | None = None,
) -> None:
    """One request to its end; ``started`` is set at its first token."""
    limit = tokenizer_manager.model_config.context_len - prompt_tokens - 8
    request = GenerateReqInput(
        rid=None if started is None else _DECODING,
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
