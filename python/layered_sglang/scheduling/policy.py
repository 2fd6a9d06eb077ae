"""Which layers does the cohort run in this iteration?

A policy is a pure function of a :class:`CohortView` (and, for ``slo``, of an estimator that all ranks
feed alike). Every tensor-parallel rank evaluates it on the same view and must reach the same answer,
so a policy reads no clock, no device and no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from layered_sglang.scheduling.cost_model import IterationTime
from layered_sglang.scheduling.estimator import Estimator
from layered_sglang.scheduling.layer_groups import LayerGroup, end_by_cost, split_layers
from layered_sglang.scheduling.work import CohortWork, DecodeWork


@dataclass(frozen=True)
class CohortView:
    """What a policy may know about the cohort in flight and the iteration to come.

    Attributes:
        num_layers: layers of the model.
        next_layer: first layer that the cohort has not run.
        cohort: its rows.
        decode: the decode rows of this iteration.
        itl_target: the strictest inter-token target among the running requests, seconds; ``None``
            without any.
    """

    num_layers: int
    next_layer: int
    cohort: CohortWork
    decode: DecodeWork
    itl_target: float | None = None

    @property
    def layers_left(self) -> int:
        return self.num_layers - self.next_layer


class LayerGroupPolicy(Protocol):
    """Chooses the layer group of an iteration; it starts at ``view.next_layer`` and is not empty."""

    def next_layer_group(self, view: CohortView) -> LayerGroup: ...

    def describe(self) -> str:
        """One phrase for the start-up banner."""


@dataclass(frozen=True)
class FixedLayerGroups:
    """The paper's rule: ``max(1, ceil(tokens / layer_group_tokens))`` balanced layer groups.

    ``num_layer_groups`` replaces the rule by one number for every cohort. With nobody decoding there
    is no one to wait for, so all remaining layers run at once.

    Source: layered prefill, arXiv 2510.08055, section 4.
    """

    layer_group_tokens: int
    num_layer_groups: int | None = None

    def groups_for(self, cohort_tokens: int, num_layers: int) -> int:
        """Number of layer groups for a cohort, between 1 and ``num_layers``."""
        wanted = self.num_layer_groups or -(-cohort_tokens // self.layer_group_tokens)
        return min(max(1, wanted), num_layers)

    def next_layer_group(self, view: CohortView) -> LayerGroup:
        if view.decode.requests == 0:
            return LayerGroup(view.next_layer, view.num_layers)
        count = self.groups_for(view.cohort.tokens, view.num_layers)
        groups = split_layers(view.num_layers, count)
        end = next(group.end for group in groups if group.end > view.next_layer)
        return LayerGroup(view.next_layer, end)

    def describe(self) -> str:
        if self.num_layer_groups is not None:
            return f"fixed, {self.num_layer_groups} layer groups a cohort"
        return f"fixed, one layer group per {self.layer_group_tokens} prompt tokens"


#: Without a target an iteration may take this many times what decode alone takes: the knee, where a
#: longer iteration no longer shortens the prompt's way by much (half of each iteration is decode).
KNEE = 2.0
#: … or this long, if that is more: nobody reads faster than 50 tokens a second.
COMFORT = 0.020


@dataclass(frozen=True, eq=False)
class SloLayerGroups:
    """As many layers as keep every running request within its inter-token target.

    At least one layer, so that no prompt starves; all when nobody decodes. A cohort's iterations are
    then made even: as few as the target allows, none longer than it must be.
    """

    estimator: Estimator

    def budget(self, decode: DecodeWork, itl_target: float | None) -> float:
        """Seconds that an iteration may be predicted to take beside ``decode``."""
        if itl_target is None:
            return max(KNEE * self.estimator.decode(decode), COMFORT)
        return itl_target / (1 + self.estimator.margin)

    def next_layer_group(self, view: CohortView) -> LayerGroup:
        start, left = view.next_layer, view.layers_left
        if view.decode.requests == 0:
            return LayerGroup(start, view.num_layers)
        line = self.estimator.merged(view.decode, view.cohort)
        budget = self.budget(view.decode, view.itl_target)
        if line.costs:
            return self._by_cost(line, budget, view)
        most = line.anywhere().layers_within(budget)
        if most >= left or self._end_is_cheaper(line, left, view):
            return LayerGroup(start, view.num_layers)
        iterations = -(-left // max(1, most))
        return LayerGroup(start, start + -(-left // iterations))

    def _by_cost(self, line: IterationTime, budget: float, view: CohortView) -> LayerGroup:
        """The same where layers are not alike: what they cost counts, not how many they are."""
        start, end = view.next_layer, view.num_layers
        left, most = line.mean_layers(start, end), line.anywhere().mean_layers_within(budget)
        if most < left and not self._end_is_cheaper(line, left, view):
            end = end_by_cost(line.costs, start, most)
        return LayerGroup(start, end)

    def _end_is_cheaper(self, line: IterationTime, rest: float, view: CohortView) -> bool:
        """Whether running all the ``rest`` costs less than what one more iteration costs on top of a
        plain decode iteration, and keeps the target itself (if not its margin)."""
        if view.itl_target is not None and line.anywhere().seconds(rest) > view.itl_target:
            return False
        without, with_rest = line.seconds(0), line.seconds(rest)
        return with_rest - without <= without - self.estimator.decode(view.decode)

    def describe(self) -> str:
        return "slo"
