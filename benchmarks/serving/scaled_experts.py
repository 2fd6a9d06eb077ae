"""A plugin for SGLang: dummy expert weights of the size that trained ones have.

SGLang's dummy weights lie within 0.001, so a MoE layer adds less than a thousandth to the hidden
states, and the logits would hardly tell whether the experts were computed at all. Scaled, a layer's
experts add about as much as a trained model's.
"""

from __future__ import annotations

import torch

FACTOR = 20.0


def activate() -> None:
    """Entry point ``sglang.srt.plugins``."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"
    HookRegistry.register(target, scale_experts, HookType.AFTER)


@torch.no_grad()
def scale_experts(_result: None, runner: object) -> None:
    for name, parameter in runner.model.named_parameters():
        if name.endswith(("experts.w13_weight", "experts.w2_weight")):
            parameter.mul_(FACTOR)
