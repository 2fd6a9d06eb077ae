"""Latent attention where prompts and decode rows share a layer.

The cache holds one narrow vector a token. A prompt's queries attend the wide way: keys and values of
all heads are expanded from those vectors. Decode's attend the narrow way: they are projected to the
vectors' width, and nothing is expanded. For a long prompt the wide way multiplies a third of what the
narrow one does. SGLang chooses by batch, so in an active layer group each part gets a call of the
layer's attention of its own; norms and experts still see all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.communicator import AttentionInputs, get_attn_tp_context
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)
from sglang.srt.utils import BumpAllocator

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from layered_sglang.executor.mixed_attention import MixedAttention

#: SGLang's names of the wide way: without a prefix, with one that is expanded at once, or in pieces.
WIDE = (
    AttnForwardMethod.MHA,
    AttnForwardMethod.MHA_ONE_SHOT,
    AttnForwardMethod.MHA_CHUNKED_KV,
)
#: Most (query, key) pairs of prompts that may be narrow although SGLang's are wide: those of 1,850 tokens
#: behind 8,192 cached ones, or of 5,800 behind none. A layer whose parts are launched one by one takes
#: the host 2.5 ms (DeepSeek-V2-Lite, benchmarks/results/2026-11-26-h200-latent-attention.md), as long as
#: the GPU needs for 5,000 tokens; a captured one takes it a small part of that.
NARROW_PAIRS = 2**24
#: Numbers that one narrow call takes from the allocator of zeros (fp8 weights).
ZEROS = 2


class LatentAttention:
    """Lets the two parts of merged rows pass a layer's latent attention one by one.

    Args:
        layers: the model's decoder layers; the ``forward`` of each one's ``self_attn`` is replaced.
        attention: knows the parts.
    """

    def __init__(self, layers: Any, attention: MixedAttention) -> None:
        self._attention = attention
        self._apart = False
        self._first = layers[0].self_attn
        for layer in layers:
            module = layer.self_attn
            module.forward = partial(self._forward, module, module.forward)

    def is_wide(self, cohort: ForwardBatch) -> bool:
        """Whether SGLang's own prefill of these rows would go the wide way."""
        return self._method(cohort) in WIDE

    def takes_graphs(self, cohort: ForwardBatch) -> bool:
        """Whether these rows, if there are graphs of their number, may go the narrow way, as captured
        layers do: what it multiplies more is little, or SGLang would do so, too."""
        parts = zip(cohort.extend_seq_lens_cpu, cohort.extend_prefix_lens_cpu, strict=True)
        pairs = sum(new * (prefix + new / 2) for new, prefix in parts)
        return pairs <= NARROW_PAIRS or not self.is_wide(cohort)

    def plan(self, cohort: ForwardBatch) -> None:
        """Look up where the cached prefix of ``cohort`` is, while the request tables hold still. SGLang
        does when the first layer needs it."""
        if not any(cohort.extend_prefix_lens_cpu):
            return
        method = self._method(cohort)
        with forward_context(ForwardContext(attn_backend=self._attention.cohort)):
            if method == AttnForwardMethod.MHA_ONE_SHOT:
                cohort.fetch_mha_one_shot_kv_indices()
            elif method == AttnForwardMethod.MHA_CHUNKED_KV:
                cohort.prepare_chunked_prefix_cache_info(cohort.input_ids.device)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it each part of the merged rows goes its own way."""
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    @staticmethod
    def together(cohort: ForwardBatch) -> None:
        """The next layers take both parts the narrow way: undo what tells a backend that keys are
        expanded, which the cohort may have from an iteration in which they were."""
        cohort.attn_attend_prefix_cache = None

    def _method(self, cohort: ForwardBatch) -> AttnForwardMethod:
        with forward_context(ForwardContext(attn_backend=self._attention.cohort)):
            return self._first.dispatch_attn_forward_method(cohort)

    def _forward(
        self,
        module: Any,
        original: Callable[..., torch.Tensor],
        *,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        forward_batch: ForwardBatch,
        zero_allocator: BumpAllocator,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``hidden_states`` [tokens, hidden_size], normed -> attention's output, of the same shape."""
        if not self._apart:
            return original(
                positions=positions,
                hidden_states=hidden_states,
                forward_batch=forward_batch,
                zero_allocator=zero_allocator,
                **kwargs,
            )
        context = get_attn_tp_context()
        # Models with narrow queries find these in the context: one multiplication for all rows.
        latents = None if module.q_lora_rank is None else context.fetch_qkv_latent()
        outs = []
        for part in self._attention.parts:
            rows = slice(part.start, part.end)
            inputs = AttentionInputs(hidden_states[rows], part.rows, module.prepare_qkv_latent)
            inputs.qkv_latent_ = None if latents is None else latents[rows]
            context.set_attn_inputs(inputs)
            zeros = BumpAllocator(ZEROS, torch.float32, hidden_states.device)
            with (
                forward_context(ForwardContext(attn_backend=part.backend)),
                self._attention.waiting_for(part.loads),
            ):
                out = original(
                    positions=positions[rows],
                    hidden_states=hidden_states[rows],
                    forward_batch=part.rows,
                    zero_allocator=zeros,
                    **kwargs,
                )
            outs.append(out)
        return torch.cat(outs)
