"""Attention for a batch whose first rows are a cohort's prompts and whose last rows decode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph import eager_on_graph

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


#: Further arguments that have a row a token: the rotated part of latent attention's queries and keys.
PER_TOKEN = ("q_rope", "k_rope")


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
        self._loads = -1
        self._capturing = False
        # Called while a breakable graph is captured, it ends one graph, and after it the next begins.
        self._attend_between_graphs = eager_on_graph(True)(self._attend)

    def set_rows(
        self, cohort: ForwardBatch | None, decode: ForwardBatch | None, loads: int = -1
    ) -> None:
        """Name the two parts of the merged batch; both ``None`` lets go of them afterwards.

        Args:
            loads: those that the cohort's cached prefix waits for (``CohortState.loads``).
        """
        self._cohort_rows, self._decode_rows, self._loads = cohort, decode, loads

    @contextmanager
    def waiting_for(self, loads: int) -> Iterator[None]:
        """Within it who reads a layer's cache waits for that layer of ``loads``, on the GPU.

        Only the cohort's rows do: those that decode have their keys, and an iteration with a cohort
        would otherwise last as long as the load of its whole prefix.
        """
        counter = getattr(self.token_to_kv_pool, "layer_transfer_counter", None)
        if counter is None or loads < 0:
            yield
            return
        counter.set_consumer(loads)
        try:
            yield
        finally:
            counter.set_consumer(-1)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """While graphs are captured: attention becomes a break in them, and computes nothing yet."""
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

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
        out = q.new_empty(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)
        if self._capturing:
            self._attend_between_graphs(out, q, k, v, layer, save_kv_cache, **kwargs)
        else:
            self._attend(out, q, k, v, layer, save_kv_cache, **kwargs)
        return out

    def _attend(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        save_kv_cache: bool,
        **kwargs: Any,
    ) -> None:
        """Fill ``out``. Rows behind the two parts are padding: zero, as garbage could be NaN."""
        if self._capturing:
            out.zero_()
            return
        cohort, decode = self._cohort_rows, self._decode_rows
        assert cohort is not None and decode is not None
        start = 0
        parts = ((self.cohort, cohort, self._loads), (self.decode, decode, -1))
        for backend, rows, loads in parts:
            end = start + rows.input_ids.shape[0]
            part = slice(start, end)
            own = {
                name: value[part] if name in PER_TOKEN and value is not None else value
                for name, value in kwargs.items()
            }
            with self.waiting_for(loads):
                result = backend.forward(
                    q[part],
                    None if k is None else k[part],
                    None if v is None else v[part],
                    layer,
                    rows,
                    save_kv_cache,
                    **own,
                )
            out[part] = result.view(end - start, -1)
            start = end
        if start < out.shape[0]:
            out[start:].zero_()
