"""SGLang's Triton kernels that a supported model calls without an alternative, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch


def replace_triton_kernels() -> None:
    """Put ours in their place; to be called before SGLang imports its models."""
    from sglang.kernels.ops.elementwise import elementwise

    elementwise.fused_gate_sigmoid_mul_add = fused_gate_sigmoid_mul_add
    elementwise.fused_sigmoid_mul = fused_sigmoid_mul


def _flatten_correction_biases() -> None:
    """Let SGLang's own choice of experts in PyTorch take ERNIE's correction bias, ``[1, experts]``."""
    from sglang.srt.layers.moe import topk

    choose = topk.fused_topk_native

    def choose_by_flat_bias(
        *args: Any, correction_bias: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bias = None if correction_bias is None else correction_bias.flatten()
        return choose(*args, correction_bias=bias, **kwargs)

    topk.fused_topk_native = choose_by_flat_bias


def replace_kernels_of_models() -> None:
    """Likewise those that models and layers define themselves; after all other replacements."""
    from sglang.srt.models import minimax_m2

    minimax_m2.rms_sumsq_serial = sums_of_squares
    minimax_m2.rms_apply_serial = rms_norms
    _flatten_correction_biases()


def sums_of_squares(x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    """``x1`` ``[tokens, width]``, ``x2`` ``[tokens, another width]`` -> ``[2, tokens]`` float32."""
    return torch.stack([x.float().square().sum(-1) for x in (x1, x2)])


def rms_norms(
    x1: torch.Tensor,
    x2: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    sum_sq: torch.Tensor,
    tp_world: int = 1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, ...]:
    """RMSNorm of ``x1`` and ``x2``, which are one rank's part of ``tp_world`` times their width, by
    ``sum_sq`` of all ranks (:func:`sums_of_squares`)."""
    return tuple(
        (x * torch.rsqrt(squares / (x.shape[-1] * tp_world) + eps)[:, None] * weight).to(x.dtype)
        for x, weight, squares in ((x1, w1, sum_sq[0]), (x2, w2, sum_sq[1]))
    )


def fused_gate_sigmoid_mul_add(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Add the shared expert's output, times its gate, to ``final_hidden_states``.

    Args:
        hidden_states: ``[tokens, hidden]``, what the experts read.
        gate_weight: ``[hidden]``.
        shared_output: ``[tokens, hidden]``.
        final_hidden_states: ``[tokens, hidden]``, the routed experts' sum; changed in place.
    """
    final_hidden_states += torch.sigmoid(hidden_states @ gate_weight)[:, None] * shared_output


def fused_sigmoid_mul(
    attn_output: torch.Tensor, gate: torch.Tensor, inplace: bool = False
) -> torch.Tensor:
    """``attn_output`` ``[tokens, heads * width]`` times the sigmoid of ``gate``
    ``[tokens, heads, width]``; ``inplace``: written to ``attn_output``."""
    gated = attn_output * torch.sigmoid(gate.reshape(attn_output.shape))
    return attn_output.copy_(gated) if inplace else gated
