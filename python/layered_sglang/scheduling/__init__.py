"""Pure scheduling policy: no torch, no SGLang, no clock. The same inputs give the same plan."""

from layered_sglang.scheduling.layer_groups import LayerGroup, split_layers
from layered_sglang.scheduling.policy import (
    CohortView,
    FixedLayerGroups,
    LayerGroupPolicy,
    make_policy,
)

__all__ = [
    "CohortView",
    "FixedLayerGroups",
    "LayerGroup",
    "LayerGroupPolicy",
    "make_policy",
    "split_layers",
]
