"""The expert operators and their PyTorch references. Imports torch, never SGLang."""

from .fused_experts import fused_experts, fused_experts_workspace_bytes
from .fused_experts_layout import interleave_gate_up, separate_gate_up
from .library import NativeStatus, native_status
from .plan import expert_plan
from .plan_layout import ExpertPlan, padded_row_capacity

__all__ = [
    "ExpertPlan",
    "NativeStatus",
    "expert_plan",
    "fused_experts",
    "fused_experts_workspace_bytes",
    "interleave_gate_up",
    "native_status",
    "padded_row_capacity",
    "separate_gate_up",
]
