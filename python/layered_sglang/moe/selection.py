"""Which experts the fused experts can compute on a device, and where they are known to be faster."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from .fp8 import BLOCK
from .fused_experts_layout import HIDDEN_MULTIPLE, INTER_MULTIPLE
from .layer_checks import MAX_TOP_K
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
    than with SGLang's own on one GPU, but for the numbers of tokens that SGLang keeps."""

    gpu: str  # its whole name: an H100 PCIe is another GPU
    results: str  # a file of benchmarks/results
    sizes: frozenset[ExpertSizes]
    weights: torch.dtype = torch.bfloat16
    #: Numbers of tokens from behind the last measured one at which ours were faster to before the next.
    sglang_keeps: Mapping[ExpertSizes, range] = MappingProxyType({})


_QWEN3, _MIXTRAL, _DEEPSEEK_V3 = (
    {tp: whole._replace(inter=whole.inter // tp) for tp in (1, 2, 4, 8)}
    for whole in (
        ExpertSizes(128, 8, 2048, 768),  # Qwen3-30B-A3B
        ExpertSizes(8, 2, 4096, 14336),  # Mixtral-8x7B
        ExpertSizes(256, 8, 7168, 2048),  # DeepSeek-V3
    )
)
_GPT_OSS_20B = ExpertSizes(32, 4, 2880, 2880)
_ALL = frozenset({*_QWEN3.values(), *_MIXTRAL.values(), *_DEEPSEEK_V3.values()})

#: What ``auto`` gives to our kernels. SGLang ran what it ships for the GPU: that is its default
#: configuration, not a tuned one, for some of these, on the H100 Qwen3's eighth, undivided Mixtral and
#: DeepSeek-V3 (the results say which). They are here because a server would run the same; a user who
#: tunes SGLang's kernels for them may do better with ``--moe-kernels sglang``. gpt-oss is here with MXFP4
#: weights, against SGLang's triton_kernels: with bfloat16 ones its experts have biases, which ours take
#: in MXFP4 only.
KNOWN_FASTER = (
    Measurement(
        "NVIDIA H200",
        "2026-11-26-h200-fused-experts.md",
        _ALL,
        sglang_keeps=MappingProxyType({_QWEN3[1]: range(3, 8), _QWEN3[4]: range(2, 512)}),
    ),
    Measurement(
        "NVIDIA H200",
        "2026-11-26-h200-fused-experts-mxfp4.md",
        frozenset({_GPT_OSS_20B}),
        torch.uint8,
    ),
    Measurement("NVIDIA H100 80GB HBM3", "2026-11-25-h100-fused-experts.md", _ALL),
)


def known_faster(
    sizes: ExpertSizes, gpu: str, weights: torch.dtype = torch.bfloat16
) -> Measurement | None:
    """By which measurement `auto` takes our kernels for these experts on the GPU of this name."""
    for known in KNOWN_FASTER:
        if gpu == known.gpu and sizes in known.sizes and weights == known.weights:
            return known
    return None


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
