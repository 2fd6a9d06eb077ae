"""The expert operators and their PyTorch references. Imports torch, never SGLang."""

from .fused_experts import (
    filling_multiprocessors,
    fused_experts,
    fused_experts_workspace_bytes,
)
from .fused_experts_fp8 import fused_experts_fp8, fused_experts_fp8_workspace_bytes
from .fused_experts_mxfp4 import fused_experts_mxfp4, fused_experts_mxfp4_workspace_bytes
from .library import NativeStatus, native_status
from .plan import expert_plan
from .plan_layout import ExpertPlan, padded_row_capacity

__all__ = [
    "ExpertPlan",
    "NativeStatus",
    "expert_plan",
    "filling_multiprocessors",
    "fused_experts",
    "fused_experts_fp8",
    "fused_experts_fp8_workspace_bytes",
    "fused_experts_mxfp4",
    "fused_experts_mxfp4_workspace_bytes",
    "fused_experts_workspace_bytes",
    "native_status",
    "padded_row_capacity",
]
