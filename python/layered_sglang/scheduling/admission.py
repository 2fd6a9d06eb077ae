"""Which waiting prompts advance next, together, and before whom?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from layered_sglang.scheduling.estimator import Estimator
from layered_sglang.scheduling.policy import SloLayerGroups
from layered_sglang.scheduling.work import CohortWork, DecodeWork

#: Exponent of the ageing rule: prompts go in the order of waited / need ** FAIRNESS. 0 is first come,
#: first served; 1 treats waiting in proportion to one's own size as fair.
FAIRNESS = 0.6
#: Seconds after which a prompt goes before all that came later, whatever its size.
PATIENCE = 20.0
#: A prompt may overtake one that needs at least this many times as long as itself …
OVERTAKE_RATIO = 4.0
#: … and all that overtake a prompt may delay it by this share of its own need.
OVERTAKE_SHARE = 0.5
#: Chunks of very long prompts are not cut below this many tokens: it loads nearly all experts.
SMALLEST_CHUNK = 1024
#: Waiting prompts looked at in one iteration, from the head of the queue.
WINDOW = 128


@dataclass(frozen=True)
class WaitingPrompt:
    """A prompt in the queue.

    Attributes:
        work: its tokens to compute (without the cached prefix).
        need: seconds of the GPU that it needs alone (:meth:`Planner.need`).
        waited: seconds since it arrived.
        priority: larger goes first; prompts never pass those of a higher one.
    """

    work: CohortWork
    need: float
    waited: float
    priority: int = 0


@dataclass(frozen=True)
class InFlight:
    """Prompt work that has begun: a cohort between layer groups, or a long prompt between chunks.

    Attributes:
        work: the cohort, or all that is left of the long prompt.
        layers_left: layers that the cohort has not run; all of them for a prompt between chunks.
        waited: seconds since its longest waiting request arrived.
        delayed: seconds by which others have overtaken it already.
        priority: the highest of its requests.
        between_chunks: it is a long prompt of which no chunk is in flight.
    """

    work: CohortWork
    layers_left: int
    waited: float
    delayed: float = 0.0
    priority: int = 0
    between_chunks: bool = False


@dataclass(frozen=True)
class QueueView:
    """What admission may know.

    Attributes:
        waiting: prompts in SGLang's order, at most :data:`WINDOW`.
        in_flight: begun work, the one that runs next last.
        decode: the running requests.
        max_tokens: most tokens of a cohort (``--layered-max-prefill-tokens``).
        itl_target: strictest target of the running requests, seconds.
        keep_order: SGLang was asked for an order of its own (``--schedule-policy``): keep it.
    """

    waiting: Sequence[WaitingPrompt]
    in_flight: Sequence[InFlight]
    decode: DecodeWork
    max_tokens: int
    itl_target: float | None = None
    keep_order: bool = False


@dataclass(frozen=True)
class Admission:
    """What to admit.

    Attributes:
        prompts: indices into ``QueueView.waiting``, in the order of admission; ``None``: SGLang's
            whole queue, as much as fits.
        tokens: most tokens of the new cohort; a longer prompt is cut there.
        continues: the long prompt between chunks goes on, first in the new cohort.
        overtakes: the new cohort runs before what is in flight.
        delay: predicted seconds that this costs what is overtaken.
        alone: SGLang's own prefill takes the prompts, in an iteration without decode.
    """

    prompts: tuple[int, ...] | None
    tokens: int
    continues: bool = False
    overtakes: bool = False
    delay: float = 0.0
    alone: bool = False


class AdmissionPolicy(Protocol):
    def admit(self, view: QueueView) -> Admission | None:
        """What is admitted now; ``None``: nothing."""


class AdmitWhenFree:
    """The paper's rule: nobody is admitted until the cohort is through, then all that fit."""

    def admit(self, view: QueueView) -> Admission | None:
        if any(not begun.between_chunks for begun in view.in_flight):
            return None
        return Admission(None, view.max_tokens, continues=bool(view.in_flight))


@dataclass(frozen=True, eq=False)
class AdmitByBenefit:
    """Cohorts by predicted benefit against waiting; short prompts pass long ones; waits are bounded.

    1. Prompts go by priority, then by waited / need ** FAIRNESS: short ones early, and everyone's turn
       comes. Who has waited for PATIENCE goes first, oldest first, and is overtaken no more.
    2. Another prompt joins a cohort when the loads of experts that it saves are worth more, summed over
       all who wait, than the time by which it delays the cohort's members. A much shorter one does not:
       it overtakes.
    3. What is in flight is overtaken by prompts that need a small part of its time, for at most a share
       of its own need in all.
    4. A prompt longer than a cohort is cut; into smaller chunks than the limit when one layer of such a
       chunk would break the target. Between chunks prompts of a higher priority go first, if they need
       not be cut: SGLang holds one prompt between chunks, not two.
    """

    estimator: Estimator
    layer_groups: SloLayerGroups

    def admit(self, view: QueueView) -> Admission | None:
        if len(view.in_flight) > 1:
            return None
        order = self._order(view)
        if not view.in_flight:
            return self._begin(view, order) if order else None
        begun = view.in_flight[0]
        if begun.between_chunks:  # its next chunk will be overtaken where that pays
            return self._continue(view, begun, order)
        return self._overtake(view, begun, order)

    def duration(self, view: QueueView, work: CohortWork, layers: int | None = None) -> float:
        """Predicted seconds until ``work`` is through ``layers`` (all by default) beside decode."""
        total = self.estimator.num_layers
        left = total if layers is None else layers
        if view.decode.requests == 0:
            return self.estimator.prefill(work) * left / total
        line = self.estimator.merged(view.decode, work)
        budget = self.layer_groups.budget(view.decode, view.itl_target)
        iterations = -(-left // max(1, line.anywhere().layers_within(budget)))
        return iterations * line.seconds(0) + line.seconds(left) - line.seconds(0)

    # --- the rules --------------------------------------------------------------------------------

    @staticmethod
    def _order(view: QueueView) -> list[int]:
        """Indices of the waiting prompts in the order in which they go."""
        indices = range(len(view.waiting))
        if view.keep_order:
            return list(indices)

        def key(i: int) -> tuple:
            prompt = view.waiting[i]
            if prompt.waited >= PATIENCE:
                return (-prompt.priority, 0, -prompt.waited, i)
            ratio = prompt.waited / max(prompt.need, 1e-9) ** FAIRNESS
            return (-prompt.priority, 1, -ratio, prompt.need, i)

        return sorted(indices, key=key)

    def _begin(self, view: QueueView, order: list[int]) -> Admission:
        first = view.waiting[order[0]]
        cap = self._chunk_tokens(view, first.work)
        if first.work.tokens >= cap:
            return Admission((order[0],), cap)
        chosen, work = self._join(view, order[1:], first.work, first.priority, cap)
        return Admission((order[0], *chosen), cap, alone=self._alone(view, work))

    def _continue(self, view: QueueView, begun: InFlight, order: list[int]) -> Admission:
        cap = self._chunk_tokens(view, begun.work)

        def goes_first(i: int) -> bool:
            prompt = view.waiting[i]
            return prompt.priority > begun.priority and prompt.work.tokens <= cap

        if urgent := self._without_passed(view, order, goes_first):
            return self._pass(view, urgent, begun.priority, cap)
        if begun.work.tokens >= cap:
            return Admission((), cap, continues=True)
        chosen, _ = self._join(view, order, begun.work, begun.priority, cap)
        return Admission(tuple(chosen), cap, continues=True)

    def _overtake(self, view: QueueView, begun: InFlight, order: list[int]) -> Admission | None:
        if begun.waited >= PATIENCE:
            return None
        left = self.duration(view, begun.work, begun.layers_left)
        allowed = OVERTAKE_SHARE * self.duration(view, begun.work) - begun.delayed
        limit = self.estimator.need(begun.work) * begun.layers_left
        limit /= self.estimator.num_layers * OVERTAKE_RATIO
        cap = self._chunk_tokens(view, begun.work)

        def may_pass(i: int) -> bool:
            prompt = view.waiting[i]
            if prompt.need > limit or prompt.priority < begun.priority or prompt.work.tokens > cap:
                return False
            # Passing has to save the short one more than it costs the long one's prompts.
            delay = self.duration(view, prompt.work)
            return delay <= allowed and begun.work.prompts * delay <= left

        short = self._without_passed(view, order, may_pass)
        return self._pass(view, short, begun.priority, cap, allowed) if short else None

    def _pass(
        self,
        view: QueueView,
        order: list[int],
        priority: int,
        cap: int,
        most_seconds: float = float("inf"),
    ) -> Admission:
        """The first of ``order``, and who joins it, run before what has begun with ``priority``."""
        work = view.waiting[order[0]].work
        chosen, work = self._join(view, order[1:], work, priority, cap, most_seconds)
        delay = self.duration(view, work)
        return Admission((order[0], *chosen), cap, overtakes=True, delay=delay)

    @staticmethod
    def _without_passed(
        view: QueueView, order: list[int], goes: Callable[[int], bool]
    ) -> list[int]:
        """Those of ``order`` that ``goes`` lets go, up to where the next would pass one that stays and
        must not be passed: one of a higher priority, or anyone when SGLang's order is kept."""
        chosen: list[int] = []
        stays: int | None = None
        for i in order:
            priority = view.waiting[i].priority
            if stays is not None and (view.keep_order or priority < stays):
                break
            if goes(i):
                chosen.append(i)
            elif stays is None:
                stays = priority
        return chosen

    def _join(
        self,
        view: QueueView,
        candidates: list[int],
        work: CohortWork,
        priority: int,
        cap: int,
        most_seconds: float = float("inf"),
    ) -> tuple[list[int], CohortWork]:
        """Those of ``candidates`` that join a cohort of ``work``, and the cohort's work then."""
        chosen: list[int] = []
        members = 1
        stays: int | None = None
        seconds = self.duration(view, work)
        for at, i in enumerate(candidates[:WINDOW]):
            prompt = view.waiting[i]
            together = work + prompt.work
            if stays is not None and prompt.priority < stays:
                break
            if self._passes_later(view, prompt, work, priority):
                if view.keep_order:
                    break
                stays = prompt.priority
                continue
            if together.tokens > cap:
                if view.keep_order:
                    break
                stays = prompt.priority
                continue
            longer = self.duration(view, together)
            behind = len(candidates) - at - 1
            delays = (members + 1 + behind) * (longer - seconds)
            saves = (1 + behind) * self.duration(view, prompt.work)
            if longer > most_seconds or delays > saves or self._one_layer_breaks(view, together):
                break
            chosen.append(i)
            work, seconds, members = together, longer, members + 1
        return chosen, work

    def _passes_later(
        self, view: QueueView, prompt: WaitingPrompt, work: CohortWork, priority: int
    ) -> bool:
        """Whether a prompt does better to overtake a cohort of ``work`` than to join it: within it, it
        would wait for the longest."""
        return (
            view.decode.requests > 0
            and prompt.priority >= priority
            and prompt.need * OVERTAKE_RATIO <= self.estimator.need(work)
        )

    def _chunk_tokens(self, view: QueueView, work: CohortWork) -> int:
        """Most tokens of a cohort of prompts like ``work``: the limit, halved while one layer of as
        much of ``work`` would break the target (down to a size that loads nearly all experts anyway).
        """
        cap = view.max_tokens
        pairs = work.pairs / max(1, work.tokens)
        while cap // 2 >= SMALLEST_CHUNK:
            chunk = CohortWork(min(cap, work.tokens), pairs * min(cap, work.tokens))
            if not self._one_layer_breaks(view, chunk):
                break
            cap //= 2
        return cap

    def _one_layer_breaks(self, view: QueueView, work: CohortWork) -> bool:
        """Whether already one layer of ``work`` beside decode is predicted to break the target."""
        if view.decode.requests == 0 or view.itl_target is None:
            return False
        budget = self.layer_groups.budget(view.decode, view.itl_target)
        line = self.estimator.merged(view.decode, work)
        return line.anywhere().seconds(line.dearest) > budget

    def _alone(self, view: QueueView, work: CohortWork) -> bool:
        """Whether SGLang's own prefill is faster and keeps the target: for tiny prompts, and where
        the host launches layer groups more slowly than whole prefills."""
        if view.decode.requests == 0:
            return False  # then all layers run at once anyway
        gap = self.estimator.prefill(work) + self.estimator.decode(view.decode)
        budget = self.layer_groups.budget(view.decode, view.itl_target)
        return gap <= budget and gap < self.duration(view, work)
