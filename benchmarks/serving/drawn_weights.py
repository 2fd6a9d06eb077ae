"""A plugin for SGLang: dummy weights of the size that trained ones have.

SGLang's dummy weights lie within 0.001, those of norms too, and parameters of equal size get equal
values. With them a layer of Qwen3-30B-A3B's experts adds less to the hidden states than bfloat16
resolves, even when the experts alone are scaled up, and all log-probabilities are equal but for some
steps of float32: they tell nothing of what the experts compute. Here norms are 1, and each matrix is
drawn for itself so that its output is as large as its input.
"""

from __future__ import annotations

import zlib

import torch

# A trained router prefers some of its top k clearly. Near ties, where rounding decides which expert
# comes last, then concern small weights only.
ROUTER_GAIN = 3.0


def activate() -> None:
    """Entry point ``sglang.srt.plugins``."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"
    HookRegistry.register(target, draw_weights, HookType.AFTER)


@torch.no_grad()
def draw_weights(_result: None, runner: object) -> None:
    """Draw the model's weights; the same in each server, as a name gives the seed.

    NOTE: shards of tensor-parallel ranks would all be equal; the comparison is of one GPU.
    """
    for name, parameter in runner.model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        seed = zlib.crc32(name.encode())
        generator = torch.Generator(device=parameter.device).manual_seed(seed)
        parameter.normal_(0.0, standard_deviation(name, parameter.shape), generator=generator)


def standard_deviation(name: str, shape: torch.Size) -> float:
    """Of a matrix [..., outputs, inputs]."""
    if name.endswith("embed_tokens.weight"):
        return 1.0
    gain = ROUTER_GAIN if name.endswith(".gate.weight") else 1.0
    return gain * shape[-1] ** -0.5
