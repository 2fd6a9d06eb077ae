"""Loads the kernels of eager layers before anybody waits for them.

CUDA loads a library's kernel when it is first launched, and for that the host waits until the GPU is
idle. Which kernel multiplies matrices depends on the number of rows, so a cohort of a new length would
hold up the launch of its first layer group, and with it the result of the iteration before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_linear_attention import RadixLinearAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from layered_sglang.executor.cohort_state import CarriedRows
from layered_sglang.executor.layer_range import LayerRangeModel
from layered_sglang.scheduling import LayerGroup

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention

#: Rows from one trial to the next. Kernels are chosen for ranges of rows, most of them wider than that;
#: odd steps meet those for rows that are multiples of nothing.
STEP = 63


class NoAttention(AttentionBackend):
    """Answers zeros, reads and stores nothing."""

    def __init__(self, like: AttentionBackend) -> None:
        super().__init__()
        self.token_to_kv_pool = like.token_to_kv_pool
        self.req_to_token_pool = like.req_to_token_pool

    def forward(
        self,
        q: torch.Tensor | None = None,
        k: torch.Tensor | None = None,
        v: torch.Tensor | None = None,
        layer: RadixAttention | RadixLinearAttention | None = None,
        forward_batch: ForwardBatch | None = None,
        save_kv_cache: bool = True,
        mixed_qkv: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``q`` [tokens, heads * head_dim] -> zeros [tokens, heads * v_head_dim]; of linear attention
        ``mixed_qkv`` [tokens, …] -> zeros [1, tokens, value heads, head_v_dim]."""
        if isinstance(layer, RadixLinearAttention):
            assert mixed_qkv is not None
            return mixed_qkv.new_zeros(1, mixed_qkv.shape[0], layer.num_v_heads, layer.head_v_dim)
        assert q is not None and layer is not None
        return q.new_zeros(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)


@torch.no_grad()
def load_kernels(
    model: LayerRangeModel, attention: AttentionBackend, most_rows: int, device: str
) -> int:
    """Run the model's first and last layer with many numbers of rows.

    Args:
        attention: a backend; its pools are what layers may ask for.
        most_rows: of an active layer group.
        device: of the model.

    Returns:
        How many numbers of rows were tried.
    """
    if model.num_layers < 2:
        return 0
    nothing = NoAttention(attention)
    # The most rows first: in the memory that they leave all the others fit. The other way round every
    # number needs new memory, and the caching allocator keeps it all.
    counts = [most_rows, *reversed(range(STEP, most_rows, STEP))]
    for count in counts:
        rows = _rows(count, device)
        carried = model.run(LayerGroup(0, 1), rows, None, nothing)
        assert isinstance(carried, CarriedRows)
        model.run(LayerGroup(model.num_layers - 1, model.num_layers), rows, carried, nothing)
    if device == "cuda":
        torch.cuda.empty_cache()  # it belongs to this stream, and iterations run on another
    return len(counts)


def _rows(count: int, device: str) -> ForwardBatch:
    """As many rows of one prompt, in the KV slot that nobody owns."""
    zeros = torch.zeros(count, dtype=torch.int64, device=device)
    return ForwardBatch(
        forward_mode=ForwardMode.EXTEND,
        batch_size=1,
        input_ids=zeros,
        positions=zeros,
        mrope_positions=zeros.repeat(3, 1),
        out_cache_loc=zeros,
        req_pool_indices=zeros[:1],
        seq_lens=zeros[:1],
        seq_lens_sum=count,
        extend_prefix_lens_cpu=[0],
        num_token_non_padded_cpu=count,
    )
