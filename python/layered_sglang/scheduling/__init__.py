"""Pure scheduling policy: no torch, no SGLang, no clock. The same inputs give the same plan."""

from layered_sglang.scheduling.admission import (
    WINDOW,
    Admission,
    InFlight,
    QueueView,
    WaitingPrompt,
)
from layered_sglang.scheduling.cost_model import Coefficients, CostModel, IterationTime
from layered_sglang.scheduling.estimator import Estimator
from layered_sglang.scheduling.layer_groups import LayerGroup, split_layers
from layered_sglang.scheduling.learning import Lessons
from layered_sglang.scheduling.model_shape import ModelShape
from layered_sglang.scheduling.planner import Planner, fixed_planner, slo_planner
from layered_sglang.scheduling.policy import (
    CohortView,
    FixedLayerGroups,
    LayerGroupPolicy,
    SloLayerGroups,
)
from layered_sglang.scheduling.work import CohortWork, DecodeWork, Iteration

__all__ = [
    "WINDOW",
    "Admission",
    "Coefficients",
    "CohortView",
    "CohortWork",
    "CostModel",
    "DecodeWork",
    "Estimator",
    "FixedLayerGroups",
    "InFlight",
    "Iteration",
    "IterationTime",
    "LayerGroup",
    "LayerGroupPolicy",
    "Lessons",
    "ModelShape",
    "Planner",
    "QueueView",
    "SloLayerGroups",
    "WaitingPrompt",
    "fixed_planner",
    "slo_planner",
    "split_layers",
]
