"""Layers of Qwen3-30B-A3B's sizes, made of torch operators and the fused experts, to time schedules by.

What is left out: rotary embedding, writing the KV cache, SGLang's own fusions. Routing is drawn
beforehand (uniform, so 32 rows reach more experts than a trained router's would).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from layered_sglang.moe import fused_experts
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

EPSILON = 1e-6
ROUTINGS = 4  # drawn for each part; layers rotate between them


@dataclass(frozen=True)
class Sizes:
    layers: int = 48
    hidden: int = 2048
    heads: int = 32
    kv_heads: int = 4
    head_dim: int = 128
    experts: int = 128
    top_k: int = 8
    inter: int = 768
    vocabulary: int = 151_936


TINY = Sizes(4, 64, 4, 2, 16, 8, 2, 32, 128)


class LayerWeights(NamedTuple):
    norm: torch.Tensor
    qkv: torch.Tensor  # [(heads + 2 kv_heads) head_dim, hidden]
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    o: torch.Tensor  # [hidden, heads head_dim]
    expert_norm: torch.Tensor
    router: torch.Tensor  # [experts, hidden]
    w13: torch.Tensor
    w2: torch.Tensor


@dataclass
class Part:
    """Rows of one kind in a batch.

    Attributes:
        x: bfloat16 [rows, hidden], what goes into the first layer.
        requests: rows are those of that many requests, as many of each.
        caches: keys and values [requests, context, kv_heads, head_dim], which layers rotate between;
            none: prompts, which attend to themselves, causally.
        routings: (topk_weights, topk_ids) [rows, top_k].
    """

    x: torch.Tensor
    requests: int
    caches: list[tuple[torch.Tensor, torch.Tensor]]
    routings: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def rows(self) -> int:
        return self.x.shape[0]


@dataclass
class Model:
    """All layers' weights; ``copies`` of them, which layers rotate between, are in memory.

    ``sms``: what attention may fill; ``None``: all of the device.
    """

    sizes: Sizes
    device: str
    copies: int
    weights: list[LayerWeights] = field(default_factory=list)
    sms: int | None = None

    def __post_init__(self) -> None:
        s, q = self.sizes, self.sizes.heads * self.sizes.head_dim
        kv = s.kv_heads * s.head_dim
        for _ in range(self.copies):
            self.weights.append(
                LayerWeights(
                    self._ones(s.hidden),
                    self._normal((q + 2 * kv, s.hidden), s.hidden**-0.5),
                    self._ones(s.head_dim),
                    self._ones(s.head_dim),
                    self._normal((s.hidden, q), q**-0.5),
                    self._ones(s.hidden),
                    self._normal((s.experts, s.hidden), s.hidden**-0.5),
                    self._normal((s.experts, 2 * s.inter, s.hidden), 2 * s.hidden**-0.5),
                    self._normal((s.experts, s.hidden, s.inter), s.inter**-0.5),
                )
            )
        self.last_norm = self._ones(s.hidden)
        self.head = self._normal((s.vocabulary, s.hidden), s.hidden**-0.5)

    def _ones(self, size: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.bfloat16, device=self.device)

    def _normal(self, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=self.device).normal_(0, scale)

    # --- parts ----------------------------------------------------------------------------------------

    def decode_part(self, requests: int, context: int, copies: int) -> Part:
        """``copies`` of each request's KV cache are in memory."""
        shape = (requests, context, self.sizes.kv_heads, self.sizes.head_dim)
        caches = [(self._normal(shape, 1.0), self._normal(shape, 1.0)) for _ in range(copies)]
        return self._part(requests, requests, caches)

    def prompt_part(self, tokens: int, longest: int) -> Part:
        """Prompts of equal length, none longer than ``longest``."""
        requests = -(-tokens // longest)
        if tokens % requests:
            raise ValueError(f"{tokens} tokens do not divide into {requests} equal prompts")
        return self._part(tokens, requests, [])

    def _part(self, rows: int, requests: int, caches: list[Any]) -> Part:
        s = self.sizes
        routings = []
        for _ in range(ROUTINGS):
            scores = torch.rand(rows, s.experts, device=self.device)
            weights, ids = scores.topk(s.top_k, dim=1)
            routings.append((weights.softmax(1), ids.int()))
        return Part(self._normal((rows, s.hidden), 1.0), requests, caches, routings)

    # --- computing ------------------------------------------------------------------------------------

    def run(self, first: int, end: int, parts: Sequence[Part], x: torch.Tensor) -> torch.Tensor:
        """Layers ``first … end - 1`` for the rows of ``parts``, one part behind the other."""
        routings = [
            tuple(_joined([part.routings[i][j] for part in parts]) for j in (0, 1))
            for i in range(ROUTINGS)
        ]
        for layer in range(first, end):
            x = self._layer(layer, parts, routings[layer % ROUTINGS], x)
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return linear(rms_norm(x, x.shape[1:], self.last_norm, EPSILON), self.head)

    def _layer(
        self, layer: int, parts: Sequence[Part], routing: tuple[Any, ...], x: torch.Tensor
    ) -> torch.Tensor:
        w = self.weights[layer % self.copies]
        qkv = linear(rms_norm(x, x.shape[1:], w.norm, EPSILON), w.qkv)
        start, attended = 0, []
        for part in parts:
            end = start + part.rows
            attended.append(self._attention(layer, w, part, qkv[start:end]))
            start = end
        x = x + linear(_joined(attended), w.o)
        h = rms_norm(x, x.shape[1:], w.expert_norm, EPSILON)
        linear(h, w.router)  # its cost; the choice was drawn beforehand
        return x + fused_experts(h, w.w13, w.w2, *routing)

    def _attention(
        self, layer: int, w: LayerWeights, part: Part, qkv: torch.Tensor
    ) -> torch.Tensor:
        s, length = self.sizes, part.rows // part.requests
        widths = [s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim]
        q, k, v = (
            t.reshape(part.requests, length, -1, s.head_dim) for t in qkv.split(widths, dim=1)
        )
        q = rms_norm(q, (s.head_dim,), w.q_norm, EPSILON)
        k = rms_norm(k, (s.head_dim,), w.k_norm, EPSILON)
        if part.caches:
            k, v = part.caches[layer % len(part.caches)]
        return attention(q, k, v, self.sms).reshape(part.rows, -1)


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sms: int | None = None
) -> torch.Tensor:
    """q [requests, length, heads, head_dim], k and v [requests, context, kv_heads, head_dim].

    Causal where several queries belong to a request. FlashAttention-3 where SGLang's kernels are
    installed, else torch's own.
    """
    flash = flash_attention_3() if q.is_cuda else None
    if flash is not None:
        margin = 0
        if sms is not None:
            margin = torch.cuda.get_device_properties(q.device).multi_processor_count - sms
        lengths = _lengths(k.shape[0], k.shape[1], q.device)
        return flash(q, k, v, cache_seqlens=lengths, causal=True, sm_margin=margin)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)
    return out.transpose(1, 2)


_length_tensors: dict[tuple[int, int], torch.Tensor] = {}


def _lengths(requests: int, context: int, device: torch.device) -> torch.Tensor:
    """NOTE: made before a graph is captured (the warm-up call does it), or it would be in its pool."""
    key = (requests, context)
    if key not in _length_tensors:
        _length_tensors[key] = torch.full((requests,), context, dtype=torch.int32, device=device)
    return _length_tensors[key]


def flash_attention_3() -> Any:
    """SGLang's, or ``None``."""
    if not _flash:
        try:
            from sgl_kernel.flash_attn import flash_attn_with_kvcache
        except Exception:  # sgl_kernel raises several kinds where it does not fit
            _flash.append(None)
        else:
            _flash.append(flash_attn_with_kvcache)
    return _flash[0]


_flash: list[Any] = []
