"""Attention in plain PyTorch with sinks, sliding windows, their own KV pool, and latent prompts.

SGLang's ``torch_native`` backend has no sinks, reads a windowed layer's keys at the slots of the full
pool, and looks for every key in the cache. This one computes these, request by request; every other
layer stays SGLang's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MLATokenToKVPool

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class Slots:
    """``cache[slots]`` of a cache's rows, which torch copies in half the time if it is told that they are
    whole ones."""

    def __init__(self, cache: torch.Tensor) -> None:
        self._cache = cache

    def __getitem__(self, slots: torch.Tensor) -> torch.Tensor:
        return self._cache.index_select(0, slots)


class TorchAttention(TorchNativeAttnBackend):
    """``torch_native`` and what gpt-oss, DeepSeek and speculative decoding need on top of it.

    Args:
        model_runner: SGLang's.
        steps_ahead: of a draft's chain: decode rows are that many tokens further than their batch says.
    """

    def __init__(self, model_runner: Any, steps_ahead: int = 0) -> None:
        super().__init__(model_runner)
        self._steps_ahead = steps_ahead

    def _run_sdpa_forward_extend(
        self, query: torch.Tensor, output: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        keys, values, *others = args
        args = (Slots(keys), Slots(values), *others)
        return super()._run_sdpa_forward_extend(query, output, *args, **kwargs)

    def _run_sdpa_forward_decode(
        self, query: torch.Tensor, output: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        keys, values, *others = args
        args = (Slots(keys), Slots(values), *others)
        return super()._run_sdpa_forward_decode(query, output, *args, **kwargs)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        latent = isinstance(self.token_to_kv_pool, MLATokenToKVPool)
        if latent and k is not None and v is not None and not save_kv_cache:
            return self._attend_to_given(q, k, v, layer, forward_batch)
        if forward_batch.forward_mode.is_target_verify():
            drafts = torch.full_like(
                forward_batch.seq_lens, forward_batch.spec_info.draft_token_num
            )
            return self._attend(
                q, k, v, layer, forward_batch, drafts, save_kv_cache, sinks, ahead=drafts
            )
        if forward_batch.forward_mode.is_draft_extend_v2():
            counts = forward_batch.extend_seq_lens
            return self._attend(q, k, v, layer, forward_batch, counts, save_kv_cache, sinks)
        if sinks is None and not self.use_sliding_window_kv_pool:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._attend(
            q, k, v, layer, forward_batch, forward_batch.extend_seq_lens, save_kv_cache, sinks
        )

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        one_each = torch.ones_like(forward_batch.seq_lens)
        if self._steps_ahead:
            ahead = one_each * self._steps_ahead
            return self._attend(
                q, k, v, layer, forward_batch, one_each, save_kv_cache, sinks, ahead=ahead
            )
        if sinks is None and not self.use_sliding_window_kv_pool:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, k, v, layer, forward_batch, one_each, save_kv_cache, sinks)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        batch: ForwardBatch,
        new: torch.Tensor,
        save_kv_cache: bool,
        sinks: torch.Tensor | None,
        ahead: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of the last ``new[i]`` tokens of each request ``i`` to what comes before them.

        Args:
            q: ``[tokens, heads * head_dim]``; ``k`` and ``v`` likewise with the KV heads.
            sinks: ``[heads]``, a logit of every head that has no value.
            ahead: ``[requests]``, tokens of each request that its length in ``batch`` leaves out.

        Returns:
            ``[tokens, heads * v_head_dim]``.
        """
        lengths = batch.seq_lens if ahead is None else batch.seq_lens + ahead
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        keys = Slots(pool.get_key_buffer(layer.layer_id))
        values = Slots(pool.get_value_buffer(layer.layer_id))
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = q.new_empty(queries.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        start = 0
        requests = zip(batch.req_pool_indices.tolist(), lengths.tolist(), new.tolist(), strict=True)
        for row, length, count in requests:
            slots = self.req_to_token_pool.req_to_token[row, :length]
            if self._windowed(layer):
                slots = pool.translate_loc_from_full_to_swa(slots)
            part = slice(start, start + count)
            out[part] = attend(
                queries[part],
                keys[slots].to(q.dtype),
                values[slots].to(q.dtype),
                layer.scaling,
                layer.sliding_window_size,
                sinks,
            )
            start += count
        return out.view(queries.shape[0], -1)

    def _attend_to_given(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        batch: ForwardBatch,
    ) -> torch.Tensor:
        """Attention of prompts whose keys and values are not those of the cache: latent attention keeps a
        narrow vector there, and expands it for prompts; with ``mha_one_shot`` also those of their prefix.
        """
        counts = batch.extend_seq_lens.tolist()
        lengths = batch.seq_lens.tolist() if batch.mha_one_shot else counts
        heads, kv_heads = layer.tp_q_head_num, layer.tp_k_head_num
        parts = zip(
            q.view(-1, heads, layer.qk_head_dim).split(counts),
            k.view(-1, kv_heads, layer.qk_head_dim).split(lengths),
            v.view(-1, kv_heads, layer.v_head_dim).split(lengths),
            strict=True,
        )
        return torch.cat([attend(*part, layer.scaling) for part in parts]).view(q.shape[0], -1)

    def _windowed(self, layer: RadixAttention) -> bool:
        """Whether the layer's keys are in the pool of windowed layers."""
        pool = self.token_to_kv_pool
        return self.use_sliding_window_kv_pool and pool.layers_mapping[layer.layer_id][1]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float,
    window: int = -1,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of a request's last tokens.

    Args:
        q: ``[new, heads, head_dim]``, the request's last tokens.
        k: ``[length, kv_heads, head_dim]``, all its tokens.
        v: ``[length, kv_heads, v_head_dim]``.
        scaling: of the logits.
        window: keys before a query that it sees beside its own; -1: all.
        sinks: ``[heads]``, logits that take part in the softmax and have no value.

    Returns:
        ``[new, heads, v_head_dim]``.
    """
    new, heads, _ = q.shape
    length, kv_heads, _ = k.shape
    first = 0 if window < 0 else max(0, length - new - window)  # no query sees what is before
    k, v = k[first:], v[first:]
    query_at = torch.arange(length - new, length, device=q.device)[:, None]
    key_at = torch.arange(first, length, device=q.device)[None, :]
    seen = key_at <= query_at
    if window >= 0:
        seen &= key_at >= query_at - window
    grouped = q.view(new, kv_heads, heads // kv_heads, -1)
    logits = torch.einsum("qkgd,lkd->kgql", grouped, k) * scaling
    logits = logits.masked_fill(~seen, -torch.inf).flatten(0, 1)
    if sinks is not None:
        logits = torch.cat((logits, sinks.to(logits.dtype)[:, None, None].expand(-1, new, 1)), 2)
    weights = logits.softmax(-1)[..., : length - first].view(kv_heads, heads // kv_heads, new, -1)
    return torch.einsum("kgql,lkd->qkgd", weights, v).reshape(new, heads, -1)
