"""Attention for a batch whose first rows are a cohort's prompts and whose last rows decode.

The host runs this code once a layer, so what is the same in all layers of an iteration is made once:
the parts, their views of tensors that graphs keep at one address, the zeros behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.radix_linear_attention import RadixLinearAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool
from sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph import eager_on_graph

from layered_sglang.executor.latent_attention import LatentLayer

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


#: What a layer attends with: queries, keys and values; or of linear attention all three in one, what a
#: token lets the state forget, and what it writes.
Inputs = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
#: What attends, and how.
Layer: TypeAlias = RadixAttention | RadixLinearAttention | LatentLayer


class Part(NamedTuple):
    """Rows ``start … end - 1`` of a merged batch, who attends for them, and the loads of cached keys that
    they wait for (−1: none)."""

    backend: AttentionBackend
    rows: ForwardBatch
    start: int
    end: int
    loads: int = -1


class MixedAttention(AttentionBackend):
    """Sends cohort rows down the extend path and decode rows down the decode path.

    Each part has a backend instance of its own, planned once an iteration (the cohort's once a
    cohort), because a SGLang attention backend holds the metadata of one batch at a time. Decode's is
    ``None`` where rows are never merged.
    """

    def __init__(self, cohort: AttentionBackend, decode: AttentionBackend | None) -> None:
        super().__init__()
        self.cohort = cohort
        self.decode = decode
        self.token_to_kv_pool = cohort.token_to_kv_pool
        self.req_to_token_pool = cohort.req_to_token_pool
        self._parts: tuple[Part, ...] = ()
        self._capturing = False
        # What all captured layers write their attention to, by width: [most rows, width].
        self._outputs: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        # Where captured tensors are. Most layers' are at the addresses of the layers before.
        self._places: dict[tuple, int] = {}
        self._views: dict[int, list[torch.Tensor]] = {}  # by place: a view a part
        # Called while a breakable graph is captured, it ends one graph, and after it the next begins.
        self._attend_between_graphs = eager_on_graph(True)(self._attend)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The two parts of the merged batch; none while no layer group is active."""
        return self._parts

    def set_rows(
        self, cohort: ForwardBatch | None, decode: ForwardBatch | None, loads: int = -1
    ) -> None:
        """Name the two parts of the merged batch; both ``None`` lets go of them afterwards.

        Args:
            loads: those that the cohort's cached prefix waits for (``CohortState.loads``).
        """
        for part in self._parts:
            part.rows._attn_output = None
        self._views.clear()
        if cohort is None or decode is None:
            self._parts = ()
            return
        assert self.decode is not None
        border = cohort.input_ids.shape[0]
        end = border + decode.input_ids.shape[0]
        self._parts = (
            Part(self.cohort, cohort, 0, border, loads),
            Part(self.decode, decode, border, end),
        )

    def pad(self, end: int, size: int) -> None:
        """Rows ``end … size - 1`` of the graphs that are replayed next are padding. Nothing but this
        writes to their output: zero, as garbage could be NaN."""
        if end < size:
            for out in self._outputs.values():
                out[end:size].zero_()

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
        """While graphs are captured, those of most rows first: attention becomes a break in them, and
        computes nothing yet."""
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    def forward(
        self,
        q: torch.Tensor | None = None,
        k: torch.Tensor | None = None,
        v: torch.Tensor | None = None,
        layer: RadixAttention | RadixLinearAttention | None = None,
        forward_batch: ForwardBatch | None = None,
        save_kv_cache: bool = True,
        mixed_qkv: torch.Tensor | None = None,
        a: torch.Tensor | None = None,
        b: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``q`` [tokens, heads * head_dim] (``k``, ``v`` likewise) -> [tokens, heads * v_head_dim].

        Linear attention takes ``mixed_qkv`` [tokens, queries, keys and values], ``a`` and ``b`` [tokens,
        value heads] -> [1, tokens, value heads, head_v_dim].
        """
        if isinstance(layer, RadixLinearAttention):
            assert mixed_qkv is not None and a is not None and b is not None
            heads, width = layer.num_v_heads, layer.head_v_dim
            out = self._run((mixed_qkv, a, b), heads * width, layer, False, kwargs)
            return out.view(1, -1, heads, width)
        assert q is not None and layer is not None
        if save_kv_cache and k is not None and self._stores_plainly(layer, kwargs):
            # Both parts' keys and values at once; in a graph, which then costs the host nothing.
            assert forward_batch is not None
            self.token_to_kv_pool.set_kv_buffer(
                layer, KVWriteLoc(forward_batch.out_cache_loc), k, v
            )
            save_kv_cache = False
        width = layer.tp_q_head_num * layer.v_head_dim
        return self._run((q, k, v), width, layer, save_kv_cache, kwargs)

    def latent(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: LatentLayer
    ) -> torch.Tensor:
        """Latent attention of both parts, whose narrow vectors are in the cache.

        ``q``, ``k`` [tokens, heads, qk_head_dim], ``v`` [tokens, heads, v_head_dim] -> [tokens, width].
        """
        return self._run((q, k, v), layer.width, layer, False, {})

    def _run(
        self,
        inputs: Inputs,
        width: int,
        layer: Layer,
        save_kv_cache: bool,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Attend, or put a break for it into the graph that is captured. Returns ``[tokens, width]``."""
        first = inputs[0]
        assert first is not None
        if not self._capturing:
            out = first.new_empty(first.shape[0], width)
            self._attend(None, out, *inputs, layer, save_kv_cache, **kwargs)
            return out
        out = self._output(first, width)
        places = tuple(map(self._place, (out, *inputs)))
        # NOTE: SGLang keeps no tensor alive that it is given so. One inside a tuple it would, and every
        # captured layer would have memory of its own.
        self._attend_between_graphs(places, out, *inputs, layer, save_kv_cache, **kwargs)
        return out

    def _stores_plainly(self, layer: RadixAttention, kwargs: dict[str, Any]) -> bool:
        """Whether a row's keys and values go to the one place that its batch names, as they are."""
        return (
            type(self.token_to_kv_pool) is MHATokenToKVPool
            and not self.token_to_kv_pool.is_quantized_kv_cache
            and not layer.is_cross_attention
            and layer.k_scale is None
            and layer.v_scale is None
            and not kwargs.keys() & {"k_descale", "v_descale"}
            and getattr(self.cohort, "dcp_size", 1) == 1
            and not getattr(self.cohort, "fa_skip_kv_cache", False)
        )

    # --- tensors of captured layers ---------------------------------------------------------------

    def _output(self, q: torch.Tensor, width: int) -> torch.Tensor:
        """The first rows of what all layers of this width write to: each layer's output is read before
        the next layer's is written."""
        out = self._outputs.get((width, q.dtype))
        if out is None:
            out = self._outputs[width, q.dtype] = q.new_zeros(q.shape[0], width)
        assert out.shape[0] >= q.shape[0], "the largest graphs are captured first"
        return out[: q.shape[0]]

    def _place(self, tensor: torch.Tensor | None) -> int:
        """A number for where ``tensor`` is and how it is laid out; −1 for none."""
        if tensor is None:
            return -1
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        return self._places.setdefault(key, len(self._places))

    def _cut(self, tensor: torch.Tensor | None, place: int | None) -> list[torch.Tensor | None]:
        """A view of ``tensor`` for each part; made once an iteration for each place."""
        if tensor is None:
            return [None] * len(self._parts)
        views = None if place is None else self._views.get(place)
        if views is None:
            views = [tensor[part.start : part.end] for part in self._parts]
            if place is not None:
                self._views[place] = views
        return views

    # --- attention --------------------------------------------------------------------------------

    def _attend(
        self,
        places: tuple[int, ...] | None,
        out: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor | None,
        third: torch.Tensor | None,
        layer: Layer,
        save_kv_cache: bool,
        **kwargs: Any,
    ) -> None:
        """Fill ``out``, but for the rows behind the two parts.

        Args:
            places: of ``out`` and the three inputs, where a graph keeps them; else ``None``.
            first, second, third: see :data:`Inputs`.
        """
        if self._capturing:
            out.zero_()
            return
        assert self._parts
        outs, *parts = map(self._cut, (out, first, second, third), places or (None,) * 4)
        target: Any
        for i, (backend, rows, _, _, loads) in enumerate(self._parts):
            target = outs[i]
            rows._attn_output = target  # some backends write right there
            with self.waiting_for(loads) if loads >= 0 else nullcontext():
                one, two, three = (part[i] for part in parts)
                if isinstance(layer, LatentLayer):
                    assert one is not None and two is not None and three is not None
                    result = layer.attend(backend, rows, one, two, three, target)
                elif isinstance(layer, RadixLinearAttention):
                    result = backend.forward(
                        layer=layer, forward_batch=rows, mixed_qkv=one, a=two, b=three, **kwargs
                    )
                else:
                    result = backend.forward(one, two, three, layer, rows, save_kv_cache, **kwargs)
            if result.data_ptr() != target.data_ptr():
                target.copy_(result.view(target.shape))
        end = self._parts[-1].end
        if places is None and end < out.shape[0]:
            out[end:].zero_()  # padding: garbage could be NaN
