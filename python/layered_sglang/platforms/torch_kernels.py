"""SGLang's Triton kernels that a supported model calls without an alternative, in plain PyTorch."""

from __future__ import annotations

import torch


def replace_triton_kernels() -> None:
    """Put ours in their place; to be called before SGLang imports its models."""
    from sglang.kernels.ops.elementwise import elementwise

    elementwise.fused_gate_sigmoid_mul_add = fused_gate_sigmoid_mul_add
    elementwise.fused_sigmoid_mul = fused_sigmoid_mul


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
