"""Run as a program: SGLang's Triton kernels for fp8 experts in Triton's interpreter, on the CPU.

It prints two relative errors against our reference: of the scales that SGLang's quantisation gives
to x, and of its experts' result.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch
import triton.language as tl
from fp8_cases import Fp8Layer, random_fp8_layer
from fused_experts_cases import Shape, relative_error, uniform_ids
from layered_sglang.moe.fp8 import quantise_groups
from layered_sglang.moe.reference import fused_experts_fp8_fp32
from sglang.kernels.ops.moe.fused_moe_triton_kernels import invoke_fused_moe_kernel
from sglang.kernels.ops.quantization.fp8_kernel import per_token_group_quant_fp8

SHAPE = Shape(num_experts=3, top_k=2, hidden=256, inter=256)
BLOCK_M = 16


def aligned_to_blocks(topk_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs expert after expert, each expert's filled up to whole blocks, and the blocks' experts."""
    flat = topk_ids.flatten().tolist()
    pairs, experts = [], []
    for expert in sorted(set(flat)):
        own = [pair for pair, other in enumerate(flat) if other == expert]
        blocks = -(-len(own) // BLOCK_M)
        pairs += own + [len(flat)] * (blocks * BLOCK_M - len(own))
        experts += [expert] * blocks
    return torch.tensor(pairs, dtype=torch.int32), torch.tensor(experts, dtype=torch.int32)


def sglang_result(layer: Fp8Layer) -> torch.Tensor:
    """The order of SGLang's _fused_moe_kernel_sequence: GEMM, SwiGLU, GEMM, sum over the slots.

    NOTE: activations are quantised before the kernels, which take that, as the interpreter's cast
    to fp8 loses the carry where a mantissa rounds up to the next exponent.
    """
    tokens, top_k = layer.topk_ids.shape
    pairs, experts = aligned_to_blocks(layer.topk_ids)
    config = {
        **{"BLOCK_SIZE_M": BLOCK_M, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128},
        **{"GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2},
    }

    def multiply(
        x: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor, top_k: int, weigh: bool
    ) -> torch.Tensor:
        values, row_scales = quantise_groups(x)
        out = torch.zeros(layer.topk_ids.numel(), weights.shape[1], dtype=torch.bfloat16)
        invoke_fused_moe_kernel(
            *(values, weights, None, out.view(tokens, -1, weights.shape[1]), row_scales, scales),
            None,
            *(layer.topk_weights, layer.topk_ids, pairs, experts),
            torch.tensor([len(pairs)], dtype=torch.int32),
            *(weigh, top_k, config),
            compute_type=tl.bfloat16,
            use_fp8_w8a8=True,
            use_int8_w8a8=False,
            use_int8_w8a16=False,
            use_int4_w4a16=False,
            per_channel_quant=False,
            block_shape=[128, 128],
        )
        return out

    gate, up = multiply(layer.x, layer.w13, layer.w13_scale_inv, top_k, False).chunk(2, dim=1)
    neurons = (torch.nn.functional.silu(gate.float()).bfloat16() * up).contiguous()
    rows = multiply(neurons, layer.w2, layer.w2_scale_inv, 1, True)
    return rows.view(tokens, top_k, -1).float().sum(1)


if __name__ == "__main__":
    fp8_layer = random_fp8_layer(SHAPE, uniform_ids(10, SHAPE), "cpu")
    _, sglang_scales = per_token_group_quant_fp8(fp8_layer.x, 128)
    print(relative_error(sglang_scales, quantise_groups(fp8_layer.x)[1]))
    print(relative_error(sglang_result(fp8_layer), fused_experts_fp8_fp32(*fp8_layer)))
