"""Which layers does the cohort run in this iteration?

A policy is a pure function of a :class:`CohortView`. Every tensor-parallel rank evaluates it on the
same view and must reach the same answer, so a policy reads no clock, no device and no randomness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from layered_sglang.scheduling.layer_groups import LayerGroup, split_layers


@dataclass(frozen=True)
class CohortView:
    """What a policy may know about the cohort in flight and the iteration to come.

    Attributes:
        num_layers: layers of the model.
        next_layer: first layer that the cohort has not run.
        cohort_tokens: prompt tokens the cohort computes (cached prefixes are not among them).
        decode_requests: running requests that decode in this iteration.
    """

    num_layers: int
    next_layer: int
    cohort_tokens: int
    decode_requests: int


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
        if view.decode_requests == 0:
            return LayerGroup(view.next_layer, view.num_layers)
        groups = split_layers(view.num_layers, self.groups_for(view.cohort_tokens, view.num_layers))
        end = next(group.end for group in groups if group.end > view.next_layer)
        return LayerGroup(view.next_layer, end)

    def describe(self) -> str:
        if self.num_layer_groups is not None:
            return f"fixed, {self.num_layer_groups} layer groups a cohort"
        return f"fixed, one layer group per {self.layer_group_tokens} prompt tokens"


#: A new policy is one entry here (and one choice of ``--layer-group-policy``).
POLICIES: dict[str, Callable[[int, int | None], LayerGroupPolicy]] = {"fixed": FixedLayerGroups}


def make_policy(
    name: str, layer_group_tokens: int, num_layer_groups: int | None
) -> LayerGroupPolicy:
    """The policy that ``--layer-group-policy`` names."""
    return POLICIES[name](layer_group_tokens, num_layer_groups)
