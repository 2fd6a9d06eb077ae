"""SGLang's speculative decoding without a GPU: chains of draft tokens (top-k 1), in plain PyTorch.

SGLang's workers run as they are. What they call as Triton or CUDA kernels is here, and so are the
attention backends of the draft's steps. Trees of draft tokens need a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from layered_sglang.platforms.torch_attention import TorchAttention


class _Kernel:
    """A function that is launched as Triton's are: ``kernel[grid](arguments)``."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._function


def replace_speculative_kernels() -> None:
    """Put ours in the place of SGLang's kernels, where its workers look for them."""
    from sglang.kernels.ops.speculative import cache_locs
    from sglang.srt.managers import overlap_utils
    from sglang.srt.mem_cache import allocation, memory_pool
    from sglang.srt.speculative import (
        draft_utils,
        eagle_utils,
        eagle_worker_common,
        eagle_worker_v2,
    )

    torch.Tensor.record_stream = lambda tensor, stream: None  # one stream, so nothing to keep
    eagle_worker_v2._is_cpu = True  # no graphs of the draft
    # What it prepares moves accepted branches of trees.
    memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup = _prepare_no_moves
    overlap_utils.gather_spec_extras = gather_rows
    allocation.assign_req_to_token_pool_func = write_slots_of_requests
    cache_locs.assign_extend_cache_locs_uniform_func = slots_of_drafts
    eagle_worker_common.assign_draft_cache_locs_contiguous = _Kernel(write_slots_of_steps)
    eagle_worker_common.fill_bonus_tokens_func = fill_bonus_tokens
    eagle_utils.sgl_build_tree_kernel_efficient = build_chains
    eagle_utils.verify_tree_greedy_func = verify_chains
    draft_utils.DraftBackendFactory.create_decode_backend = _draft_attention
    draft_utils.DraftBackendFactory.create_draft_extend_backend = _draft_extend_attention


def _prepare_no_moves(pool: Any) -> None:
    pool._kv_copy_config = None


def keep_overlap_schedule() -> None:
    """SGLang turns the overlap loop off for speculative decoding on a CPU; the loop itself works."""
    from sglang.srt.arg_groups import speculative_hook

    speculative_hook._disable_overlap_schedule_for_cpu = lambda server_args: None


class DraftSteps:
    """The draft's attention backends, one for each step of a chain.

    Args:
        factory: SGLang's, which knows the draft's model runner and the number of steps.
    """

    def __init__(self, factory: Any) -> None:
        self.attn_backends = [
            TorchAttention(factory.draft_model_runner, steps_ahead=step + 1)
            for step in range(factory.speculative_num_steps - 1)
        ]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)


def _draft_attention(factory: Any) -> DraftSteps:
    return DraftSteps(factory)


def _draft_extend_attention(factory: Any) -> TorchAttention:
    return TorchAttention(factory.draft_model_runner)


def slots_of_drafts(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
    device: torch.device,
) -> torch.Tensor:
    """KV slots of each request's ``draft_token_num`` tokens from ``start_offset`` on.

    Args:
        req_pool_indices: ``[batch_size]``, rows of ``req_to_token``.
        req_to_token: ``[rows, most tokens]``, the slots of each row's tokens.
        start_offset: ``[batch_size]``.

    Returns:
        ``[batch_size * draft_token_num]`` int64.
    """
    at = start_offset[:, None] + torch.arange(draft_token_num)
    return req_to_token[req_pool_indices.long()[:, None], at.long()].flatten().long()


def write_slots_of_steps(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    width: int,
    topk: int,
    steps: int,
) -> None:
    """The slots that a chain of ``steps`` tokens will have, written to ``out_cache_loc``."""
    out_cache_loc.copy_(
        slots_of_drafts(
            req_pool_indices, req_to_token, seq_lens, len(seq_lens), topk * steps, "cpu"
        )
    )


def write_slots_of_requests(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """The new slots of all requests, ``out_cache_loc``, written to their rows of ``req_to_token``, from
    ``start_offset`` to ``end_offset``."""
    counts = (end_offset - start_offset).tolist()
    parts = zip(
        req_pool_indices.tolist(), start_offset.tolist(), out_cache_loc.split(counts), strict=True
    )
    for row, start, slots in parts:
        req_to_token[row, start : start + len(slots)] = slots.to(req_to_token.dtype)


def gather_rows(
    indices: torch.Tensor, *buffers: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """Rows ``indices`` of each of ``buffers``, the draft's of the iteration before."""
    return tuple(None if buffer is None else buffer[indices] for buffer in buffers)


def fill_bonus_tokens(
    accept_tokens: torch.Tensor,
    accept_lens: torch.Tensor,
    bonus_tokens: torch.Tensor,
    accept_stride: int,
    batch_size: int,
) -> None:
    """The last accepted token of each request, written to ``bonus_tokens`` ``[batch_size]``."""
    rows = accept_tokens.view(batch_size, accept_stride)
    bonus_tokens.copy_(rows.gather(1, accept_lens.long()[:, None] - 1)[:, 0])


def build_chains(
    parent_list: torch.Tensor,
    top_scores_index: torch.Tensor,
    seq_lens: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: Any,
) -> None:
    """A tree of draft tokens that is a chain: each token's only child is the next one.

    Written to: ``positions`` ``[requests * num_verify_tokens]``; ``retrieve_index`` and
    ``retrieve_next_token`` ``[requests, num_verify_tokens]``, rows and children (-1: none).
    ``retrieve_next_sibling`` stays -1. The mask is not read: attention of a chain is causal.
    """
    if topk != 1:
        raise ValueError(f"trees of draft tokens need a GPU; use top-k 1, not {topk}")
    requests = seq_lens.numel()
    step = torch.arange(num_verify_tokens)
    positions.copy_((seq_lens[:, None] + step).flatten())
    retrieve_index.copy_(torch.arange(requests * num_verify_tokens).view(requests, -1))
    retrieve_next_token.copy_((step + 1).expand(requests, -1))
    retrieve_next_token[:, -1] = -1


def verify_chains(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
    topk: int = -1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How many draft tokens of each chain are what the model itself would have said.

    Args:
        predicts: ``[requests * tokens]``; the model's token after every accepted one is written there.
        accept_index: ``[requests, tokens]``; rows of accepted tokens, the root first, -1 behind them.
        accept_token_num: ``[requests]``; accepted draft tokens, without the root.
        candidates: ``[requests, tokens]``, the root and the draft's tokens.
        target_predict: ``[requests, tokens]``, the model's token after each of them.
    """
    right = candidates[:, 1:] == target_predict[:, :-1]
    accepted = right.long().cumprod(1).sum(1)
    step = torch.arange(candidates.shape[1])
    taken = step <= accepted[:, None]
    accept_index[:, : taken.shape[1]] = torch.where(taken, retrieve_index, -1).to(
        accept_index.dtype
    )
    accept_token_num.copy_(accepted)
    predicts.copy_(torch.where(taken, target_predict, 0).flatten())
    return predicts, accept_index, accept_token_num
