"""Latent prompts behind a cached prefix, as SGLang's FlashAttention backend has them on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def choose_as_on_a_gpu(backend: str) -> None:
    """Let ``backend`` choose as ``fa3`` does whether a prompt's cached prefix is expanded, and look up
    where it is without a Triton kernel."""
    from sglang.srt.model_executor.forward_batch_deepseek_mha_mixin import (
        ForwardBatchDeepSeekMHAMixin,
    )
    from sglang.srt.models.deepseek_common.attention_backend_handler import (
        AttentionBackendRegistry,
        handle_attention_fa3,
    )
    from sglang.srt.server_args import add_chunked_prefix_cache_attention_backend

    add_chunked_prefix_cache_attention_backend(backend)
    AttentionBackendRegistry.register(backend, handle_attention_fa3)
    ForwardBatchDeepSeekMHAMixin.fetch_mha_one_shot_kv_indices = slots_of_all_keys


def slots_of_all_keys(self: ForwardBatch) -> torch.Tensor:
    """KV slots of a batch's requests, prefix and new tokens, one request behind the other; looked up
    once."""
    from sglang.srt.model_executor.forward_context import get_req_to_token_pool

    if self.mha_one_shot_kv_indices is None:
        table = get_req_to_token_pool().req_to_token
        requests = zip(self.req_pool_indices.tolist(), self.seq_lens.tolist(), strict=True)
        self.mha_one_shot_kv_indices = torch.cat([table[row, :length] for row, length in requests])
    return self.mha_one_shot_kv_indices
