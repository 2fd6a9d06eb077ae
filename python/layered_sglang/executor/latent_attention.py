"""Latent attention where prompts and decode rows share a layer.

The cache holds one narrow vector a token. A prompt's queries attend the wide way: keys and values of
all heads are expanded from those vectors. Decode's attend the narrow way: they are projected to the
vectors' width, and nothing is expanded. For a long prompt the wide way multiplies a third of what the
narrow one does. SGLang chooses by batch and runs a layer's whole attention for it; here all rows are
projected, rotated, stored and expanded together, only attention itself is called once for each part, and
its output is projected for all rows again::

    all rows   queries, narrow vectors, rotation, cache, keys and values │      │ output projection
    prompts                                              (cached prefix) │ wide │
    decode                           to the vectors' width, attention, back from it

What is left of ``│`` and right of it can be in CUDA graphs (``merged_graphs.py``), whatever the requests'
lengths; expanding the few decode rows, too, is the price.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from sglang.srt.model_executor.forward_context import (
    ForwardContext,
    forward_context,
    get_attn_backend,
)
from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)
from sglang.srt.models.deepseek_common.utils import FORWARD_ABSORB_CORE_ATTENTION_BACKENDS

from layered_sglang.config import StartRefused

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.utils import BumpAllocator

#: SGLang's names of the wide way: without a prefix, with one that is expanded at once, or in pieces.
WIDE = (
    AttnForwardMethod.MHA,
    AttnForwardMethod.MHA_ONE_SHOT,
    AttnForwardMethod.MHA_CHUNKED_KV,
)


class AttentionByPart(Protocol):
    """Sends each part of merged rows to its own attention (``mixed_attention.py``)."""

    @property
    def cohort(self) -> AttentionBackend:
        """The prompts' backend."""

    def latent(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: LatentLayer
    ) -> torch.Tensor:
        """:meth:`LatentLayer.attend`, part by part."""


class LatentAttention:
    """Lets the two parts of merged rows go their ways in each layer.

    Args:
        layers: the model's decoder layers; the ``forward`` of each one's ``self_attn`` is replaced.
        attention: knows the parts.
        backends: SGLang's names of the attention backends, of prompts and of decode.
    """

    def __init__(self, layers: Any, attention: AttentionByPart, backends: tuple[str, str]) -> None:
        self._attention = attention
        self._first = layers[0].self_attn
        self._layers = [
            LatentLayer(layer.self_attn, layer.self_attn.forward, attention, backends)
            for layer in layers
        ]
        for layer, ours in zip(layers, self._layers, strict=True):
            layer.self_attn.forward = ours.forward

    def plan(self, cohort: ForwardBatch) -> None:
        """Choose the way of ``cohort`` as SGLang's own prefill would, and look up where its cached prefix
        is, while the request tables hold still. SGLang does both in every layer."""
        with forward_context(ForwardContext(attn_backend=self._attention.cohort)):
            way = self._first.dispatch_attn_forward_method(cohort)
            if way in WIDE and any(cohort.extend_prefix_lens_cpu):
                if way == AttnForwardMethod.MHA_CHUNKED_KV:
                    cohort.prepare_chunked_prefix_cache_info(cohort.input_ids.device)
                else:
                    cohort.fetch_mha_one_shot_kv_indices()
        if way in WIDE:  # what SGLang's layers tell the backend
            cohort.mha_one_shot = way == AttnForwardMethod.MHA_ONE_SHOT
            cohort.mha_return_lse = False
            cohort.set_attn_attend_prefix_cache(False)
        for layer in self._layers:
            layer.way = way


class LatentLayer:
    """One layer's attention.

    Args:
        module: SGLang's ``DeepseekV2AttentionMLA``.
        original: its ``forward``.
        attention: sends each part of merged rows to :meth:`attend`.
        backends: as :class:`LatentAttention` has them.

    Attributes:
        width: of attention's output, all heads of this rank.
        way: of the cohort that is planned; its rows decide it, not the layer.

    Raises:
        StartRefused: its weights are in a layout that decode rows cannot be projected with here.
    """

    def __init__(
        self,
        module: Any,
        original: Callable[..., torch.Tensor],
        attention: AttentionByPart,
        backends: tuple[str, str],
    ) -> None:
        if module.use_deep_gemm_bmm:
            raise StartRefused(
                "layered prefill does not work with SGL_USE_DEEPGEMM_BMM=1 and latent attention: decode "
                "rows in layer groups are projected by SGLang's other kernels; unset it"
            )
        self._module, self._original, self._attention = module, original, attention
        self._backends = backends
        self.width: int = module.num_local_heads * module.v_head_dim
        self.way = AttnForwardMethod.MHA

    def forward(
        self,
        *,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        forward_batch: ForwardBatch,
        zero_allocator: BumpAllocator,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``hidden_states`` [tokens, hidden_size], normed -> attention's output, of the same shape."""
        module = self._module
        if get_attn_backend() is not self._attention:
            return self._original(
                positions=positions,
                hidden_states=hidden_states,
                forward_batch=forward_batch,
                zero_allocator=zero_allocator,
                **kwargs,
            )
        module.current_attention_backend = self._backends[0]
        q, k, v, _ = module.forward_normal_prepare(
            positions, hidden_states, forward_batch, zero_allocator
        )
        out, _ = module.o_proj(self._attention.latent(q, k, v, self))
        return out

    def attend(
        self,
        backend: AttentionBackend,
        rows: ForwardBatch,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of one part, whose narrow vectors are in the cache.

        Args:
            backend: planned for ``rows``.
            q, k: ``[tokens, heads, qk_head_dim]``, rotated; ``v``: ``[tokens, heads, v_head_dim]``.
            out: ``[tokens, heads * v_head_dim]``, where the result may be written.

        Returns:
            The result, there or elsewhere, and then in a tensor of as many numbers.
        """
        if rows.forward_mode.is_decode():
            return self._narrow(backend, rows, q, out, self._backends[1])
        if self.way not in WIDE:
            return self._narrow(backend, rows, q, out, self._backends[0])
        if self.way == AttnForwardMethod.MHA_CHUNKED_KV and rows.num_prefix_chunks:
            return self._wide_in_pieces(backend, rows, q, k, v)
        if rows.mha_one_shot and rows.mha_one_shot_kv_indices is not None:
            k, v = self._expanded(rows, q.dtype)
        rows._attn_output = out  # some backends write right there
        return backend.forward(q, k, v, self._module.attn_mha, rows, False)

    def _expanded(
        self, rows: ForwardBatch, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens of the requests, their cached prefixes' among them."""
        m = self._module
        narrow, rotated = m._get_mla_kv_buffer(rows.mha_one_shot_kv_indices, dtype, rows)
        heads = m.kv_b_proj(narrow)[0].view(
            -1, m.num_local_heads, m.qk_nope_head_dim + m.v_head_dim
        )
        keys = m._concat_and_cast_mha_k(heads[..., : m.qk_nope_head_dim], rotated, rows)
        return keys, heads[..., m.qk_nope_head_dim :]

    def _wide_in_pieces(
        self,
        backend: AttentionBackend,
        rows: ForwardBatch,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
    ) -> torch.Tensor:
        """As SGLang's ``forward_normal_chunked_kv_core``: the prefix is too long to expand it at once."""
        rows._attn_output = None  # each piece has an output of its own
        rows.mha_return_lse = True
        rows.set_attn_attend_prefix_cache(False)
        with forward_context(ForwardContext(attn_backend=backend)):
            out, lse = backend.forward(q, k, v, self._module.attn_mha, rows, False)
            rows.set_attn_attend_prefix_cache(True)
            return self._module._chunked_prefix_attn_mha(
                q=q, accum_output=out, accum_lse=lse, forward_batch=rows
            )

    def _narrow(
        self,
        backend: AttentionBackend,
        rows: ForwardBatch,
        q: torch.Tensor,
        out: torch.Tensor,
        name: str,
    ) -> torch.Tensor:
        """As SGLang's ``forward_absorb_core``, less the store and the output projection."""
        m = self._module
        plain, rotated = q.split([m.qk_nope_head_dim, m.qk_rope_head_dim], dim=-1)
        plain = per_head(plain, m.w_kc, m.w_scale)
        rows._attn_output = None  # it would have to be as wide as the cache's vectors
        if name in FORWARD_ABSORB_CORE_ATTENTION_BACKENDS:
            attended = backend.forward(plain, None, None, m.attn_mqa, rows, False, q_rope=rotated)
        else:
            whole = torch.cat((plain, rotated), dim=-1)
            attended = backend.forward(whole, None, None, m.attn_mqa, rows, False)
        attended = attended.view(-1, m.num_local_heads, m.kv_lora_rank)
        per_head(attended, m.w_vc, m.w_scale, out.view(-1, m.num_local_heads, m.v_head_dim))
        return out


def per_head(
    rows: torch.Tensor, weights: torch.Tensor, scale: Any, out: torch.Tensor | None = None
) -> torch.Tensor:
    """``rows`` [tokens, heads, n] times ``weights`` [heads, n, m] -> [tokens, heads, m].

    Args:
        weights: in the rows' dtype, or in fp8 with one ``scale``; then the rows are brought to fp8 as in
            SGLang's latent layers.
        out: where to.
    """
    heads_first = rows.transpose(0, 1)
    if weights.dtype != torch.float8_e4m3fn:
        if out is None:
            return torch.bmm(heads_first, weights).transpose(0, 1)
        torch.bmm(heads_first, weights, out=out.transpose(0, 1))
        return out
    from sglang.kernels.ops.gemm import bmm_fp8
    from sglang.kernels.ops.quantization.fp8_kernel import per_tensor_quant_mla_fp8

    largest = torch.zeros(1, dtype=torch.float32, device=rows.device)
    values, values_scale = per_tensor_quant_mla_fp8(heads_first, largest)
    result = bmm_fp8(values, weights, values_scale, scale, rows.dtype).transpose(0, 1)
    return result if out is None else out.copy_(result)
