"""MXFP4 experts (gpt-oss) beneath SGLang's FusedMoE: which layers, their weights, and the call.

SGLang holds such weights in triton_kernels' layout and routes with its routing. A layer that is taken
over gets ours: its packed weights in the place of SGLang's, one layer after the other so that only one
is twice in memory, and from its router expert ids and weights.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.token_dispatcher.standard import (
    StandardCombineInput,
    StandardDispatchOutput,
)
from sglang.srt.layers.moe.topk import TopK, TopKOutputFormat

from layered_sglang.moe import fused_experts_mxfp4
from layered_sglang.moe.mxfp4 import LARGEST_SCALE, pack


def find_router(model: torch.nn.Module, layer: FusedMoE) -> TopK | None:
    """The TopK whose output ``layer`` gets: in SGLang's models its neighbour in one block."""
    for module in model.modules():
        if getattr(module, "experts", None) is layer:
            topk = getattr(module, "topk", None)
            return topk if isinstance(topk, TopK) else None
    return None


def why_not_mxfp4(layer: FusedMoE, router: TopK | None) -> str | None:
    """Why a layer of SGLang's ``Mxfp4MoEMethod`` has not the form that the kernels take."""
    config = layer.moe_runner_config
    if not hasattr(layer.quant_method, "w13_weight_triton_tensor"):
        return "they are not in triton_kernels' layout (Mxfp4MoEMethod)"
    if config.gemm1_alpha is None or config.gemm1_clamp_limit is None or config.swiglu_limit:
        return "their SwiGLU is not gpt-oss's (Mxfp4MoEMethod)"
    if not config.gate_up_interleaved:
        return "their gate and up rows do not alternate (Mxfp4MoEMethod)"
    if router is None:
        return "their router is not found beside them (Mxfp4MoEMethod)"
    scales = layer.w13_weight_scale, layer.w2_weight_scale
    if any(int(scale.max()) > LARGEST_SCALE for scale in scales):
        return "a group's scale is above 2 (Mxfp4MoEMethod)"
    return None


def take_over_mxfp4(layer: FusedMoE, router: TopK) -> None:
    """Bring a layer's weights into our layout, in the place of SGLang's, and let ``router`` give ids."""
    method = layer.quant_method
    for name in ("w13", "w2"):
        values = _checkpoint_values(getattr(method, f"{name}_weight_triton_tensor"))
        delattr(method, f"{name}_weight_triton_tensor")
        delattr(method, f"{name}_precision_config")  # has SGLang's copy of the scales
        scales = getattr(layer, f"{name}_weight_scale").data
        packed = pack(values, scales, gate_up=name == "w13")
        delattr(layer, f"{name}_weight_scale")
        setattr(layer, f"{name}_packed", torch.nn.Parameter(packed, requires_grad=False))
        bias = getattr(layer, f"{name}_weight_bias")
        bias.data = bias.data.float().contiguous()
    router.topk_config.output_format = TopKOutputFormat.STANDARD
    method.apply = run_layered_mxfp4  # in this instance only


def has_our_layout(model: torch.nn.Module) -> bool:
    """Whether some of the model's experts were taken over; SGLang's loader finds no weights of them."""
    return any(hasattr(module, "w13_packed") for module in model.modules())


def run_layered_mxfp4(
    layer: FusedMoE, dispatch_output: StandardDispatchOutput
) -> StandardCombineInput:
    """In the place of the quantisation method's ``apply``; never over the input, as SGLang's."""
    topk = dispatch_output.topk_output
    config = layer.moe_runner_config
    scale = config.routed_scaling_factor
    y = fused_experts_mxfp4(
        dispatch_output.hidden_states,
        *(layer.w13_packed, layer.w13_weight_bias, layer.w2_packed, layer.w2_weight_bias),
        *(topk.topk_weights.float().contiguous(), topk.topk_ids.int().contiguous()),
        alpha=config.gemm1_alpha,
        limit=config.gemm1_clamp_limit,
        routed_scaling_factor=1.0 if scale is None else scale,
    )
    return StandardCombineInput(hidden_states=y)


def _checkpoint_values(tensor: Any) -> torch.Tensor:
    """A triton_kernels tensor [E, K, N] of FP4 -> uint8 [E, N, K / 2] as in the checkpoint."""
    storage = tensor.storage
    return storage.layout.unswizzle_data(storage.data).transpose(-2, -1).contiguous()
