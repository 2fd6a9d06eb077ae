"""Which experts the fused experts can compute on a device, and where they are known to be faster."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .fused_experts_layout import HIDDEN_MULTIPLE, INTER_MULTIPLE, MAX_TOP_K
from .library import has_kernels_for, native_status
from .plan_layout import MAX_EXPERTS


class ExpertSizes(NamedTuple):
    """A rank's experts: w13 [num_experts, 2 * inter, hidden], w2 [num_experts, hidden, inter]."""

    num_experts: int
    top_k: int
    hidden: int
    inter: int


#: On an H200 at no number of tokens slower than SGLang's Triton kernels; an entry is a measurement
#: under benchmarks/results.
KNOWN_FASTER = frozenset({ExpertSizes(128, 8, 2048, 768)})  # Qwen3-30B-A3B


def why_unsupported(sizes: ExpertSizes, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why `fused_experts` has no compiled code for these experts; None where it has."""
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
    if dtype != torch.bfloat16:
        return f"they are {str(dtype).removeprefix('torch.')}, and the kernels take bfloat16"
    if sizes.hidden % HIDDEN_MULTIPLE:
        return f"the hidden size {sizes.hidden} is not a multiple of {HIDDEN_MULTIPLE}"
    if sizes.inter % INTER_MULTIPLE:
        return f"a rank's intermediate size {sizes.inter} is not a multiple of {INTER_MULTIPLE}"
    if sizes.num_experts > MAX_EXPERTS:
        return f"{sizes.num_experts} experts are more than {MAX_EXPERTS}"
    if sizes.top_k > MAX_TOP_K:
        return f"{sizes.top_k} experts a token are more than {MAX_TOP_K}"
    return None
