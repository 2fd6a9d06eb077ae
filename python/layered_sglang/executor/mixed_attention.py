"""Attention for a batch whose first rows are a cohort's prompts and whose last rows decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class MixedAttention(AttentionBackend):
    """Sends cohort rows down the extend path and decode rows down the decode path.

    Each part has a backend instance of its own, planned once an iteration (the cohort's once a
    cohort), because a SGLang attention backend holds the metadata of one batch at a time.
    """

    def __init__(self, cohort: AttentionBackend, decode: AttentionBackend) -> None:
        super().__init__()
        self.cohort = cohort
        self.decode = decode
        self.token_to_kv_pool = cohort.token_to_kv_pool
        self.req_to_token_pool = cohort.req_to_token_pool
        self._cohort_rows: ForwardBatch | None = None
        self._decode_rows: ForwardBatch | None = None

    def set_rows(self, cohort: ForwardBatch | None, decode: ForwardBatch | None) -> None:
        """Name the two parts of the merged batch; both ``None`` lets go of them afterwards."""
        self._cohort_rows, self._decode_rows = cohort, decode

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``q`` [tokens, heads * head_dim] (``k``, ``v`` likewise) -> [tokens, heads * v_head_dim]."""
        cohort, decode = self._cohort_rows, self._decode_rows
        assert cohort is not None and decode is not None
        n = cohort.input_ids.shape[0]
        parts = []
        for backend, rows, part in (
            (self.cohort, cohort, slice(0, n)),
            (self.decode, decode, slice(n, None)),
        ):
            out = backend.forward(
                q[part],
                None if k is None else k[part],
                None if v is None else v[part],
                layer,
                rows,
                save_kv_cache,
                **kwargs,
            )
            parts.append(out.reshape(rows.input_ids.shape[0], -1))
        return torch.cat(parts)
