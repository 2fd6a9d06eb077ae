"""Which experts the fused experts can compute on a device, and where they are known to be faster."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .fp8 import BLOCK
from .fused_experts_layout import HIDDEN_MULTIPLE, INTER_MULTIPLE, MAX_TOP_K
from .library import has_kernels_for, native_status
from .mxfp4 import GROUP
from .plan_layout import MAX_EXPERTS

#: Of the hidden and of a rank's intermediate size, by the weights' dtype (uint8: MXFP4).
MULTIPLES = {
    torch.bfloat16: (HIDDEN_MULTIPLE, INTER_MULTIPLE),
    torch.float8_e4m3fn: (BLOCK, BLOCK),
    torch.uint8: (GROUP, GROUP),
}


class ExpertSizes(NamedTuple):
    """A rank's experts: w13 [num_experts, 2 * inter, hidden], w2 [num_experts, hidden, inter]."""

    num_experts: int
    top_k: int
    hidden: int
    inter: int


class Measurement(NamedTuple):
    """Experts whose layer was at no measured number of tokens more than 3% slower with our kernels
    than with SGLang's Triton kernels on one GPU."""

    gpu: str  # its whole name: an H100 PCIe is another GPU
    results: str  # a file of benchmarks/results
    sizes: frozenset[ExpertSizes]
    weights: torch.dtype = torch.bfloat16


#: What ``auto`` gives to our kernels. SGLang ran what it ships for the GPU: on the H100 that is its
#: default configuration, not a tuned one, for Qwen3's eighth, undivided Mixtral and DeepSeek-V3. They
#: are here because a server would run the same; a user who tunes SGLang's kernels for them may do
#: better with ``--moe-kernels sglang``. gpt-oss is not here: with bfloat16 weights its experts have
#: biases, and its MXFP4 ones have not been measured as faster.
KNOWN_FASTER = (
    Measurement(
        "NVIDIA H200",
        "2026-11-24-h200-fused-experts.md",
        frozenset({ExpertSizes(128, 8, 2048, 768)}),
    ),
    Measurement(
        "NVIDIA H100 80GB HBM3",
        "2026-11-25-h100-fused-experts.md",
        frozenset(
            {
                *(ExpertSizes(128, 8, 2048, 768 // tp) for tp in (1, 2, 4, 8)),  # Qwen3-30B-A3B
                *(ExpertSizes(8, 2, 4096, 14336 // tp) for tp in (1, 2, 4, 8)),  # Mixtral-8x7B
                *(ExpertSizes(256, 8, 7168, 2048 // tp) for tp in (1, 2, 4, 8)),  # DeepSeek-V3
            }
        ),
    ),
)


def known_faster(sizes: ExpertSizes, gpu: str, weights: torch.dtype = torch.bfloat16) -> bool:
    """Whether `auto` takes our kernels for these experts on the GPU of this name."""
    return any(
        gpu == known.gpu and sizes in known.sizes and weights == known.weights
        for known in KNOWN_FASTER
    )


def why_unsupported(sizes: ExpertSizes, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why there is no compiled code for these experts; None where there is.

    For bfloat16 weights that is `fused_experts`, for float8_e4m3fn ones `fused_experts_fp8`, and for
    uint8, which stands for MXFP4, `fused_experts_mxfp4`.
    """
    return why_no_kernels(device) or _why_not_these_experts(sizes, dtype)


def why_no_kernels(device: torch.device) -> str | None:
    """Why nothing compiled runs on this device; None where it does."""
    if has_kernels_for(device):
        return None
    status = native_status()
    if not status.available or (device.type == "cuda" and not status.cuda):
        return f"there are no compiled kernels ({status.reason})"
    if device.type != "cuda":
        return f"there are no kernels for {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"the kernels are for {', '.join(status.architectures)}, and this GPU is sm_{major}{minor}"
    )


def _why_not_these_experts(sizes: ExpertSizes, dtype: torch.dtype) -> str | None:
    if dtype not in MULTIPLES:
        return f"they are {str(dtype).removeprefix('torch.')}, and the kernels take bfloat16"
    hidden_multiple, inter_multiple = MULTIPLES[dtype]
    if sizes.hidden % hidden_multiple:
        return f"the hidden size {sizes.hidden} is not a multiple of {hidden_multiple}"
    if sizes.inter % inter_multiple:
        return f"a rank's intermediate size {sizes.inter} is not a multiple of {inter_multiple}"
    if sizes.num_experts > MAX_EXPERTS:
        return f"{sizes.num_experts} experts are more than {MAX_EXPERTS}"
    if sizes.top_k > MAX_TOP_K:
        return f"{sizes.top_k} experts a token are more than {MAX_TOP_K}"
    return None
