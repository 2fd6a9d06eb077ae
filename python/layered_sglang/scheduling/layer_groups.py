"""Layer groups: contiguous, ordered, balanced pieces of a model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple


class LayerGroup(NamedTuple):
    """Layers ``start`` … ``end - 1`` of a model."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


@lru_cache(maxsize=256)
def split_layers(num_layers: int, num_layer_groups: int) -> tuple[LayerGroup, ...]:
    """Cut ``num_layers`` layers into ``num_layer_groups`` contiguous groups.

    The groups cover every layer once, in order, and their sizes differ by at most one.

    Raises:
        ValueError: unless ``1 <= num_layer_groups <= num_layers``.
    """
    if not 1 <= num_layer_groups <= num_layers:
        raise ValueError(
            f"num_layer_groups must be between 1 and the number of layers ({num_layers}), "
            f"got {num_layer_groups}"
        )
    borders = [num_layers * i // num_layer_groups for i in range(num_layer_groups + 1)]
    return tuple(LayerGroup(start, end) for start, end in pairwise(borders))


def end_by_cost(costs: Sequence[float], start: int, most: float) -> int:
    """End of the next layer group, where layers cost more and less.

    As few groups as ``most`` allows are made even: the group ends where it is nearest to an equal share
    of what is left, costs at most ``most``, and has at least one layer.

    Args:
        costs: of each layer of the model.
        start: the group's first layer.
        most: that a group may cost.
    """
    left = sum(costs[start:])
    share = left / max(1, -(-left // most)) if most > 0 else 0.0
    cost, end = costs[start], start + 1
    while end < len(costs) and cost + costs[end] / 2 <= share and cost + costs[end] <= most:
        cost += costs[end]
        end += 1
    return end
