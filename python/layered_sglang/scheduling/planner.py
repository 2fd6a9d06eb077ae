"""The planner: which prompts advance next, and through how many layers in this iteration."""

from __future__ import annotations

from dataclasses import dataclass

from layered_sglang.scheduling.admission import (
    Admission,
    AdmissionPolicy,
    AdmitByBenefit,
    AdmitWhenFree,
    QueueView,
)
from layered_sglang.scheduling.estimator import Estimator
from layered_sglang.scheduling.layer_groups import LayerGroup
from layered_sglang.scheduling.policy import (
    CohortView,
    FixedLayerGroups,
    LayerGroupPolicy,
    SloLayerGroups,
)
from layered_sglang.scheduling.work import CohortWork, DecodeWork


@dataclass(frozen=True, eq=False)
class Planner:
    """A policy for layers, one for admission, and the estimator that both may ask.

    The server's scheduler and the simulator run this same object.
    """

    layer_groups: LayerGroupPolicy
    admission: AdmissionPolicy
    estimator: Estimator

    def next_layer_group(self, view: CohortView) -> LayerGroup:
        return self.layer_groups.next_layer_group(view)

    def admit(self, view: QueueView) -> Admission | None:
        return self.admission.admit(view)

    @property
    def overtakes(self) -> bool:
        """Whether prompts may be admitted while others are in flight."""
        return not isinstance(self.admission, AdmitWhenFree)

    def need(self, work: CohortWork) -> float:
        """Seconds of the GPU that a prompt needs alone; what short and long mean."""
        return self.estimator.need(work)

    def mean_layers(self, decode: DecodeWork, cohort: CohortWork, layers: LayerGroup) -> float:
        """How many layers of average cost ``layers`` are for ``cohort``."""
        return self.estimator.merged(decode, cohort).mean_layers(*layers)

    def predict(
        self,
        decode: DecodeWork,
        cohort: CohortWork | None,
        layers: float,
        first: bool = False,
        last: bool = False,
    ) -> float:
        """Seconds of an iteration; ``layers`` of it, of average cost, have ``cohort`` in them: its
        ``first`` or its ``last`` layer group, or one between."""
        if cohort is None or layers == 0:
            return self.estimator.decode(decode)
        return self.estimator.merged(decode, cohort).at(first, last).seconds(layers)

    def describe(self) -> str:
        return self.layer_groups.describe()


def fixed_planner(
    estimator: Estimator, layer_group_tokens: int, num_layer_groups: int | None = None
) -> Planner:
    """The paper's: layer groups by prompt length, one cohort at a time."""
    groups = FixedLayerGroups(layer_group_tokens, num_layer_groups)
    return Planner(groups, AdmitWhenFree(), estimator)


def slo_planner(estimator: Estimator) -> Planner:
    """Layers by the inter-token target, admission by benefit."""
    groups = SloLayerGroups(estimator)
    return Planner(groups, AdmitByBenefit(estimator, groups), estimator)
