"""A plugin for SGLang: dummy weights of the size that trained ones have.

SGLang's dummy weights lie within 0.001, those of norms too, and parameters of equal size get equal
values. With them a layer of Qwen3-30B-A3B's experts adds less to the hidden states than bfloat16
resolves, even when the experts alone are scaled up, and all log-probabilities are equal but for some
steps of float32: they tell nothing of what the experts compute. Here norms are 1, and each matrix is
drawn for itself so that its output is as large as its input.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence

import torch

# A trained router prefers some of its top k clearly. Near ties, where rounding decides which expert
# comes last, then concern small weights only.
ROUTER_GAIN = 3.0
MXFP4_DEVIATION = 2.93  # of e2m1's 16 values


def activate() -> None:
    """Entry point ``sglang.srt.plugins``."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"
    HookRegistry.register(target, draw_weights, HookType.AFTER)
    # MXFP4 experts are bytes, and soon in a layout of the runner's own.
    method = "sglang.srt.layers.quantization.mxfp4.Mxfp4MoEMethod"
    target = f"{method}.process_weights_after_loading"
    HookRegistry.register(target, draw_mxfp4_weights, HookType.BEFORE)


@torch.no_grad()
def draw_weights(_result: None, runner: object) -> None:
    """Draw the model's weights; the same in each server, as a name gives the seed.

    NOTE: shards of tensor-parallel ranks would all be equal; the comparison is of one GPU.
    """
    drawn = set(_mxfp4_weights(runner.model))
    for name, parameter in runner.model.named_parameters():
        if not parameter.is_floating_point() or name in drawn:
            continue
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        seed = zlib.crc32(name.encode())
        generator = torch.Generator(device=parameter.device).manual_seed(seed)
        parameter.normal_(0.0, standard_deviation(name, parameter.shape), generator=generator)


def _mxfp4_weights(model: torch.nn.Module) -> Iterator[str]:
    """Names of MXFP4 experts' weights and scales, whatever form their runner has brought them into."""
    for prefix, module in model.named_modules():
        if type(getattr(module, "quant_method", None)).__name__ == "Mxfp4MoEMethod":
            for name, _ in module.named_parameters(prefix, recurse=False):
                if not name.endswith("bias"):
                    yield name


@torch.no_grad()
def draw_mxfp4_weights(_method: object, layer: torch.nn.Module) -> None:
    """Draw an MXFP4 layer's bytes: every value is as likely, and all groups have one scale."""
    for name in ("w13", "w2"):
        weight, scale = (getattr(layer, f"{name}_{part}") for part in ("weight", "weight_scale"))
        seed = zlib.crc32(f"{layer.layer_id}.{name}".encode())
        generator = torch.Generator(device=weight.device).manual_seed(seed)
        for expert in weight:
            expert.random_(0, 256, generator=generator)
        deviation = standard_deviation(name, (weight.shape[-1] * 2,)) / MXFP4_DEVIATION
        scale.fill_(127 + round(math.log2(deviation)))


def standard_deviation(name: str, shape: Sequence[int]) -> float:
    """Of a matrix [..., outputs, inputs]."""
    if name.endswith("embed_tokens.weight"):
        return 1.0
    gain = ROUTER_GAIN if name.endswith((".gate.weight", ".router.weight")) else 1.0
    return gain * shape[-1] ** -0.5
