"""The fused experts beneath SGLang's FusedMoE: which layers they serve, and the call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.token_dispatcher.standard import (
    StandardCombineInput,
    StandardDispatchOutput,
)
from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod
from sglang.srt.layers.quantization.mxfp4 import Mxfp4MoEMethod
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

from layered_sglang.config import StartRefused
from layered_sglang.hooks.moe_runner_mxfp4 import (
    find_router,
    has_our_layout,
    take_over_mxfp4,
    why_not_mxfp4,
)
from layered_sglang.hooks.server_args import layered_config
from layered_sglang.moe import fused_experts, fused_experts_fp8
from layered_sglang.moe.fp8 import BLOCK
from layered_sglang.moe.selection import ExpertSizes, known_faster, why_unsupported

if TYPE_CHECKING:
    from sglang.srt.layers.moe.topk import TopK
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)


def choose_moe_kernels(_result: None, runner: ModelRunner) -> None:
    """Hook after ``ModelRunner.load_model``: hand the experts to the kernels that will serve them.

    Sets ``runner.experts_text``, one phrase for the log and the banner.

    Raises:
        StartRefused: ``--moe-kernels layered``, and a layer's experts cannot be served.
    """
    choice, of = layered_config(runner.server_args).moe_kernels, ""
    if runner.is_draft_worker:
        choice, of = (
            "auto" if choice == "layered" else choice,
            " of the draft model",
        )  # it may have none
    runner.experts_text = hand_over(runner.model, runner.server_args, choice)
    if runner.ps.tp_rank == 0:
        logger.info("experts%s: %s", of, runner.experts_text)


def hand_over(model: torch.nn.Module, server_args: ServerArgs, choice: str) -> str:
    """Let the fused experts compute each FusedMoE layer of ``model`` that ``choice`` gives them.

    Args:
        choice: ``--moe-kernels``: auto, layered or sglang.

    Returns:
        What computes the experts, one phrase.

    Raises:
        StartRefused: as for ``choose_moe_kernels``.
    """
    layers = [module for module in model.modules() if isinstance(module, FusedMoE)]
    served = 0
    keeps: dict[str, None] = {}
    reasons: dict[str, None] = {}  # in the order met
    for layer in layers:
        router = find_router(model, layer) if is_mxfp4(layer) else None
        reason: str | None = "--moe-kernels sglang"
        kept = range(0)
        if choice != "sglang":
            reason = why_not(layer, server_args, router)
        if choice == "auto" and not reason:
            reason, kept = why_not_faster(layer), kept_by_sglang(layer)
        if reason:
            reasons[reason] = None
            continue
        if router is not None:
            take_over_mxfp4(layer, router)
        else:
            # In this instance only.
            layer.quant_method.apply = run_some(layer, kept) if kept else run_layered
            if kept:
                keeps[f"{kept.start} to {kept.stop - 1}"] = None
        served += 1
    if choice == "layered" and served < max(1, len(layers)):
        why = next(iter(reasons), "the model has none")
        raise StartRefused(
            f"--moe-kernels layered cannot compute the experts: {why}; "
            "use --moe-kernels auto or sglang"
        )
    text = _describe(layers, served, list(reasons))
    if has_our_layout(model):
        text += "; weights cannot be updated while serving"
    return text + "".join(f"; for {tokens} tokens SGLang's, faster there" for tokens in keeps)


def run_layered(layer: FusedMoE, dispatch_output: StandardDispatchOutput) -> StandardCombineInput:
    """In the place of the quantisation method's ``apply``, with its parameters and result.

    Where SGLang would overwrite the input (``inplace``), so does this.
    """
    x = dispatch_output.hidden_states
    topk = dispatch_output.topk_output
    config = layer.moe_runner_config
    scale = config.routed_scaling_factor
    routing = topk.topk_weights.float().contiguous(), topk.topk_ids.int().contiguous()
    routed_scaling_factor = 1.0 if scale is None else scale
    out = x if config.inplace else None
    w13, w2 = layer.w13_weight, layer.w2_weight
    if w13.dtype == torch.float8_e4m3fn:
        weights = w13, layer.w13_weight_scale_inv, w2, layer.w2_weight_scale_inv
        y = fused_experts_fp8(
            x, *weights, *routing, routed_scaling_factor=routed_scaling_factor, out=out
        )
    else:
        y = fused_experts(
            x, w13, w2, *routing, routed_scaling_factor=routed_scaling_factor, out=out
        )
    return StandardCombineInput(hidden_states=y)


def run_some(layer: FusedMoE, kept: range) -> Callable[..., StandardCombineInput]:
    """:func:`run_layered`, but for numbers of tokens that SGLang keeps; the weights serve both."""
    theirs = layer.quant_method.apply

    def run(layer: FusedMoE, dispatch_output: StandardDispatchOutput) -> StandardCombineInput:
        if dispatch_output.hidden_states.shape[0] in kept:
            return theirs(layer, dispatch_output)
        return run_layered(layer, dispatch_output)

    return run


def why_not(layer: FusedMoE, server_args: ServerArgs, router: TopK | None = None) -> str | None:
    """Why the fused experts cannot compute this layer as SGLang does; None if they can.

    Args:
        router: of an MXFP4 layer.
    """
    method, config = layer.quant_method, layer.moe_runner_config
    mxfp4 = is_mxfp4(layer)
    if type(method) is Fp8MoEMethod:
        reason = why_not_fp8(layer)
        if reason:
            return reason
    elif mxfp4:
        reason = why_not_mxfp4(layer, router)
        if reason:
            return reason
    elif type(method) is not UnquantizedFusedMoEMethod:
        return f"they are quantised or wrapped ({type(method).__name__})"
    if getattr(method, "runner", None) is None:  # CUTLASS has none
        return f"--moe-runner-backend is {server_args.moe_runner_backend}"
    backend = method.runner.runner_backend
    obstacles: dict[str, Any] = {
        f"--moe-runner-backend chose {backend.value}": not (
            backend.is_triton_kernels() if mxfp4 else backend.is_triton()
        ),
        f"--moe-a2a-backend is {server_args.moe_a2a_backend}": server_args.moe_a2a_backend
        != "none",
        "--enable-lora hooks into SGLang's kernels": server_args.enable_lora,
        "--enable-torch-compile compiles SGLang's own code": server_args.enable_torch_compile,
        "--enable-deterministic-inference wants sums that do not depend on the batch size": (
            server_args.enable_deterministic_inference
        ),
        f"their activation is {config.activation}": config.activation != "silu",
        "they have no gate": not config.is_gated,
        "they have biases": layer.with_bias and not mxfp4,
        "their SwiGLU is clamped or scaled": not mxfp4
        and not (config.gemm1_alpha is config.gemm1_clamp_limit is config.swiglu_limit is None),
        "router weights are applied to their input": config.apply_router_weight_on_input,
        "their results are not combined": config.no_combine,
    }
    for reason, stands in obstacles.items():
        if stands:
            return reason
    return why_unsupported(sizes_of(layer), *dtype_and_device_of(layer))


def why_not_fp8(layer: FusedMoE) -> str | None:
    """Why a layer of SGLang's ``Fp8MoEMethod`` has not the format that the kernels take."""
    method = layer.quant_method
    if method.weight_block_size is None or list(method.weight_block_size) != [BLOCK, BLOCK]:
        return f"their scales are not of blocks of {BLOCK} x {BLOCK} (Fp8MoEMethod)"
    scales = layer.w13_weight_scale_inv
    if method.use_mxfp8 or method.is_fp4_expert or scales.dtype != torch.float32:
        return "they are in MXFP8 or FP4 (Fp8MoEMethod)"
    if layer.w13_input_scale is not None:
        return "their activations have fixed scales (Fp8MoEMethod)"
    return None


def why_not_faster(layer: FusedMoE) -> str | None:
    """Why ``auto`` leaves a layer that could be served to SGLang; None if it does not."""
    sizes, (dtype, device) = sizes_of(layer), dtype_and_device_of(layer)
    if device.type == "cpu":
        return "the CPU code is a reference"
    gpu = torch.cuda.get_device_name(device)
    if not known_faster(sizes, gpu, dtype):
        in_format = {torch.float8_e4m3fn: "in fp8 ", torch.uint8: "in MXFP4 "}.get(dtype, "")
        return (
            f"not measured as faster {in_format}for {tuple(sizes)} (experts, top k, hidden, "
            f"intermediate) on {gpu}"
        )
    return None


def kept_by_sglang(layer: FusedMoE) -> range:
    """Numbers of tokens at which ``auto`` leaves such a layer to SGLang's kernels, which are faster."""
    sizes, (dtype, device) = sizes_of(layer), dtype_and_device_of(layer)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = known_faster(sizes, gpu, dtype)
    return range(0) if known is None else known.sglang_keeps.get(sizes, range(0))


def is_mxfp4(layer: FusedMoE) -> bool:
    return type(layer.quant_method) is Mxfp4MoEMethod


def dtype_and_device_of(layer: FusedMoE) -> tuple[torch.dtype, torch.device]:
    """Of the weights; uint8 stands for MXFP4."""
    if is_mxfp4(layer):
        return torch.uint8, layer.w13_weight_bias.device
    return layer.w13_weight.dtype, layer.w13_weight.device


def sizes_of(layer: FusedMoE) -> ExpertSizes:
    if is_mxfp4(layer):
        num_experts, hidden = layer.w2_weight_bias.shape
        inter = layer.w13_weight_bias.shape[1] // 2
        return ExpertSizes(num_experts, layer.top_k or 1, hidden, inter)
    num_experts, hidden, inter = layer.w2_weight.shape
    return ExpertSizes(num_experts, layer.top_k or 1, hidden, inter)


def _describe(layers: list[FusedMoE], served: int, reasons: list[str]) -> str:
    if not layers:
        return "none: a dense model"
    ours = "layered_sglang's fused experts"
    if served == len(layers):
        return ours
    runners = (getattr(layer.quant_method, "runner", None) for layer in layers)
    names = sorted({runner.runner_backend.value for runner in runners if runner})
    on_cpu = any(parameter.device.type == "cpu" for parameter in layers[0].parameters())
    theirs = "SGLang's PyTorch code" if on_cpu else "SGLang's " + (", ".join(names) or "kernels")
    why = "; ".join(reasons)
    if served == 0:
        return f"{theirs} ({why})"
    return f"{ours} in {served} layers, {theirs} in {len(layers) - served} ({why})"
