"""What a cohort carries from one layer group to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


@dataclass
class CarriedRows:
    """Activations between two layers, one row a token.

    Attributes:
        hidden: ``[tokens, hidden_size]``, the model's dtype.
        residual: ``[tokens, hidden_size]``, the model's dtype.
    """

    hidden: torch.Tensor
    residual: torch.Tensor

    def rows(self, start: int, end: int | None = None) -> CarriedRows:
        """Rows ``start … end`` as views.

        NOTE: layers update rows in place, each row only from itself. Views of disjoint rows may
        therefore live side by side, and need no copy.
        """
        return CarriedRows(self.hidden[start:end], self.residual[start:end])

    def copy_from(self, source: CarriedRows) -> None:
        """Copy ``source`` here, except what is here already (layers add to the residual in place)."""
        for ours, theirs in ((self.hidden, source.hidden), (self.residual, source.residual)):
            if ours.data_ptr() != theirs.data_ptr():
                ours.copy_(theirs)

    @staticmethod
    def cat(first: CarriedRows, second: CarriedRows) -> CarriedRows:
        return CarriedRows(
            torch.cat((first.hidden, second.hidden)), torch.cat((first.residual, second.residual))
        )


@dataclass(eq=False)
class CohortState:
    """Device-side state of one cohort.

    Created at admission, owned by the scheduler's ``Cohort``, dropped with it: after the last layer
    group, or at once on abort and restart (the forward stream's order protects kernels in flight).

    Attributes:
        forward_batch: inputs of the whole prompt pass, built before the first layer group.
        inputs: what they were built from; whoever launches kernels that read it holds it.
        planned: whether the attention backend holds this cohort's metadata.
        carried: activations after the last layer run; ``None`` before layer 0 and after the end.
        captured: ``[tokens, hidden_size]`` each: inputs of the layers that a draft model reads (EAGLE-3),
            of those that ran.
        loads: number of the loads from SGLang's host KV cache that bring its cached prefix, layer by
            layer; -1: it needs none.
    """

    forward_batch: ForwardBatch | None = None
    inputs: list[Any] | None = None
    planned: bool = False
    carried: CarriedRows | None = None
    captured: list[torch.Tensor] = field(default_factory=list)
    loads: int = -1

    def made_for_launch(self) -> list[Any]:
        """What launched kernels read; whoever launches them holds it until they are over."""
        return [self.forward_batch, self.inputs]

    def park(self) -> None:
        """Make way for another cohort: own what may lie in rows and metadata that cohorts share."""
        self.planned = False
        if self.carried is not None:
            self.carried = CarriedRows(self.carried.hidden.clone(), self.carried.residual.clone())

    def drop(self) -> None:
        """Let go of everything: the cohort was aborted or restarted."""
        self.forward_batch = self.inputs = self.carried = None
        self.captured = []
        self.planned = False
