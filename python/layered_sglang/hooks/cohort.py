"""A cohort: the waiting prompts that were admitted together and advance by layer groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from layered_sglang.executor.cohort_state import CohortState
from layered_sglang.hooks.views import cohort_work
from layered_sglang.scheduling import CohortView, CohortWork, DecodeWork, LayerGroup

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult


@dataclass(eq=False)
class Cohort:
    """One prefill batch in flight.

    Lifetime::

        admitted ──▶ in flight ──▶ launched ──▶ merged into the running batch
           KV slots    layers 0 … next_layer    last layer group    SGLang's own from here
           allocated   have been launched       launched

    Two may be in flight: one that overtakes runs first, the other waits between two layer groups.
    A cohort leaves early when all its requests are aborted (KV released, nothing published) or when
    the KV pool runs out (KV released, requests queued again). The scheduler's
    ``CohortsInFlight`` owns it; an iteration borrows it through a :class:`LayerGroupStep`.

    NOTE: while a cohort is in flight none of its requests has a result in the overlap queue: a
    chunk's result is processed in the iteration that admits the next chunk, before anything can
    abort or restart it. Releasing a cohort therefore never races a pending result.

    Attributes:
        batch: SGLang's extend batch, prepared once at admission.
        num_layers: layers of the model.
        admitted_at: ``time.monotonic()`` at admission, for SGLang's busy-time counter only.
        next_layer: first layer not yet launched.
        delayed: predicted seconds by which others have overtaken it.
    """

    batch: ScheduleBatch
    num_layers: int
    admitted_at: float
    next_layer: int = 0
    delayed: float = 0.0
    state: CohortState = field(default_factory=CohortState)

    @property
    def reqs(self) -> list[Req]:
        return self.batch.reqs

    @property
    def tokens(self) -> int:
        """Prompt tokens it computes."""
        return self.batch.extend_num_tokens

    @property
    def chunk_tokens(self) -> int:
        """Those of them that belong to a prompt cut into chunks."""
        return sum(
            length
            for req, length in zip(self.reqs, self.batch.extend_lens, strict=True)
            if req is self.batch.chunked_req or req.extend_batch_idx > 1
        )

    @cached_property
    def work(self) -> CohortWork:
        """Its rows, in the planner's words; asked for at admission, while SGLang's batch says so."""
        return cohort_work(self.batch)

    def view(self, decode: DecodeWork, itl_target: float | None) -> CohortView:
        return CohortView(self.num_layers, self.next_layer, self.work, decode, itl_target)

    def advance(self, layers: LayerGroup, decode: DecodeWork) -> LayerGroupStep:
        """Hand out ``layers`` for launch in this iteration, beside these decode rows."""
        assert layers.start == self.next_layer and layers.end > layers.start
        self.next_layer = layers.end
        return LayerGroupStep(self, layers, decode)


@dataclass(frozen=True, eq=False)
class LayerGroupStep:
    """The cohort's part of one iteration. Lives from scheduling to the return of the forward call."""

    cohort: Cohort
    layers: LayerGroup
    decode: DecodeWork

    @property
    def is_first(self) -> bool:
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        return self.layers.end == self.cohort.num_layers


@dataclass(frozen=True, eq=False)
class CohortResult:
    """First tokens of a cohort, riding on the decode result of the iteration that launched them.

    ``batch`` is a snapshot: by the time the result is processed the cohort's own batch object has
    been merged into the running batch.
    """

    batch: ScheduleBatch
    result: GenerationBatchResult
