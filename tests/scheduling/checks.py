"""What the planner promises, as plain functions: property tests call them with drawn cases,
``test_mutations.py`` with fixed ones and a broken rule, which they must notice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layered_sglang.scheduling import (
    Admission,
    CohortView,
    CohortWork,
    DecodeWork,
    Estimator,
    Iteration,
    LayerGroup,
    LayerGroupPolicy,
    Planner,
    QueueView,
)
from layered_sglang.scheduling.admission import (
    OVERTAKE_RATIO,
    OVERTAKE_SHARE,
    PATIENCE,
    SMALLEST_CHUNK,
)
from layered_sglang.scheduling.launches import LIMIT
from layered_sglang.scheduling.policy import COMFORT, KNEE
from worlds import History, Prompt


@dataclass(frozen=True)
class LayerCase:
    """A cohort beside an unchanging decode batch."""

    estimator: Estimator
    cohort: CohortWork
    decode: DecodeWork
    target: float | None

    def view(self, next_layer: int = 0) -> CohortView:
        layers = self.estimator.num_layers
        return CohortView(layers, next_layer, self.cohort, self.decode, self.target)

    def seconds(self, layers: int, first: bool = False, last: bool = False) -> float:
        """Of an iteration with ``layers`` of the cohort's, its ``first`` or its ``last`` among them."""
        return self.estimator.merged(self.decode, self.cohort).at(first, last).seconds(layers)


def layer_groups(policy: LayerGroupPolicy, case: LayerCase) -> list[LayerGroup]:
    """All layer groups of the cohort; every layer once and in order, or an assertion fails."""
    groups: list[LayerGroup] = []
    layer = 0
    while layer < case.estimator.num_layers:
        group = policy.next_layer_group(case.view(layer))
        assert group.start == layer, "layers out of order"
        assert layer < group.end <= case.estimator.num_layers, "the cohort does not advance"
        groups.append(group)
        layer = group.end
    return groups


def check_target_is_kept(policy: LayerGroupPolicy, case: LayerCase) -> None:
    """No iteration of more than one layer is over the target; and it keeps the margin, too, unless it
    ends the cohort cheaply. So where one layer keeps the target, every iteration does."""
    if case.target is None or case.decode.requests == 0:
        return
    budget = case.target / (1 + case.estimator.margin)
    for group in layer_groups(policy, case):
        first, last = group.start == 0, group.end == case.estimator.num_layers
        layers = group.end - group.start
        predicted = case.seconds(layers, first, last)
        if layers == 1 and case.seconds(1, True, True) > budget:
            continue
        assert predicted <= case.target * (1 + 1e-9)
        if not last:
            assert predicted <= budget * (1 + 1e-9)


def check_one_layer_at_least(policy: LayerGroupPolicy, case: LayerCase) -> None:
    """Also where no layer keeps the target, a layer runs: one, if the rest is not next to free."""
    groups = layer_groups(policy, case)
    if (
        case.target is not None
        and case.decode.requests
        and case.seconds(1, True, True) > case.target
    ):
        assert all(group.end - group.start == 1 for group in groups)


def check_iterations_are_even_and_few(policy: LayerGroupPolicy, case: LayerCase) -> None:
    if case.decode.requests == 0:
        return
    limit = case.target
    limit = (
        max(KNEE * case.estimator.decode(case.decode), COMFORT)
        if limit is None
        else limit / (1 + case.estimator.margin)
    )
    line = case.estimator.merged(case.decode, case.cohort)
    most = max(1, line.anywhere().layers_within(limit))
    groups = layer_groups(policy, case)
    sizes = [group.end - group.start for group in groups]
    assert len(sizes) <= -(-case.estimator.num_layers // most), "more iterations than needed"
    assert max(sizes[:-1], default=0) - min(sizes[:-1], default=0) <= 1
    assert sizes[-1] >= sizes[0] - 1, "the last iteration is left with little"
    if len(sizes) > 1 and case.seconds(sizes[-1], True, True) <= limit:
        assert sizes[-1] <= sizes[0], "the last iteration is the longest"


def check_the_cheap_end_is_taken(policy: LayerGroupPolicy, case: LayerCase) -> None:
    """Whoever has layers left after an iteration saves more than an iteration by stopping there."""
    if case.decode.requests == 0:
        return
    overhead = case.seconds(0) - case.estimator.decode(case.decode)
    for group in layer_groups(policy, case):
        left = case.estimator.num_layers - group.start
        rest = case.seconds(left)
        keeps = case.target is None or case.seconds(left, True, True) <= case.target
        if group.end < case.estimator.num_layers and keeps:
            assert rest - case.seconds(0) > overhead, "an iteration more for almost nothing"


def check_nobody_waits_for_nobody(policy: LayerGroupPolicy, case: LayerCase, layer: int) -> None:
    """Nobody decodes: all the rest runs at once."""
    idle = CohortView(case.estimator.num_layers, layer, case.cohort, DecodeWork(), case.target)
    assert policy.next_layer_group(idle) == LayerGroup(layer, case.estimator.num_layers)


def check_patience(history: History, prompts: Sequence[Prompt]) -> None:
    """Who has waited for PATIENCE is passed by nobody of the same priority who came later, except for
    joining the cohort of someone older."""
    for event in history.events:
        a, view = event.admission, event.view
        if a.overtakes:
            urgent = urgent_between_chunks(view, a)
            assert urgent or view.in_flight[0].waited < PATIENCE, "a patient cohort is overtaken"
            continue
        if a.continues or not a.prompts:
            continue
        leader = view.waiting[a.prompts[0]]
        for prompt in view.waiting:
            if prompt.priority == leader.priority and prompt.waited >= PATIENCE:
                assert leader.waited >= prompt.waited, "passed after PATIENCE"


def check_overtaking_is_bounded(history: History, planner: Planner) -> None:
    """All that overtake a cohort delay it by at most OVERTAKE_SHARE of what it needs itself; but for
    those of a higher priority between two chunks."""
    for event in history.events:
        if event.admission.overtakes and not urgent_between_chunks(event.view, event.admission):
            (begun,) = event.view.in_flight
            needs = duration(planner.estimator, event.view, begun.work)
            assert event.admission.delay > 0
            assert begun.delayed + event.admission.delay <= OVERTAKE_SHARE * needs * (1 + 1e-9)
            assert begun.priority <= min(
                event.view.waiting[i].priority for i in event.admission.prompts or ()
            )


def check_only_much_shorter_ones_overtake(history: History, estimator: Estimator) -> None:
    """By what the GPU has to do for them, against what is left of the cohort in flight."""
    for event in history.events:
        if event.admission.overtakes and not urgent_between_chunks(event.view, event.admission):
            (begun,) = event.view.in_flight
            left = estimator.need(begun.work) * begun.layers_left / estimator.num_layers
            for i in event.admission.prompts or ():
                need = estimator.need(event.view.waiting[i].work)
                assert need * OVERTAKE_RATIO <= left * (1 + 1e-9)


def check_priorities_are_never_passed(history: History) -> None:
    """Nobody who is admitted leaves one of a higher priority waiting."""
    for event in history.events:
        chosen = event.admission.prompts or ()
        stay = [p.priority for i, p in enumerate(event.view.waiting) if i not in chosen]
        for i in chosen:
            assert event.view.waiting[i].priority >= max(stay, default=-1_000_000)


def check_priorities_go_between_chunks(history: History) -> None:
    """Whoever is of a higher priority than a long prompt goes before its next chunk, if it fits uncut;
    and one of several chunks is never cut for it."""
    for event in history.events:
        a, view = event.admission, event.view
        if not view.in_flight or not view.in_flight[0].between_chunks:
            continue
        urgent = [p for p in view.waiting if p.priority > view.in_flight[0].priority]
        highest = max((p.priority for p in urgent), default=0)
        if a.continues:
            assert all(p.work.tokens > a.tokens for p in urgent if p.priority == highest)
        else:
            tokens = [view.waiting[i].work.tokens for i in a.prompts or ()]
            assert a.overtakes and sum(tokens) <= a.tokens


def urgent_between_chunks(view: QueueView, admission: Admission) -> bool:
    """Whether it lets prompts of a higher priority go before a long one's next chunk."""
    (begun,) = view.in_flight
    first = view.waiting[(admission.prompts or (0,))[0]]
    return begun.between_chunks and first.priority > begun.priority


def check_order_is_kept(history: History) -> None:
    """With SGLang's own order the head of the queue goes first, and nobody is left out between."""
    for event in history.events:
        chosen = event.admission.prompts
        assert chosen is None or chosen == tuple(range(len(chosen)))


def check_cohorts_fit(history: History) -> None:
    """A cohort of several prompts fits its limit, and the limit is the server's or less."""
    for event in history.events:
        a, view = event.admission, event.view
        assert 1 <= a.tokens <= view.max_tokens
        tokens = [view.waiting[i].work.tokens for i in a.prompts or ()]
        if a.continues:
            tokens.append(view.in_flight[0].work.tokens)
        if len(tokens) > 1:
            assert sum(tokens) <= a.tokens


def check_cohorts_keep_the_target(history: History, estimator: Estimator) -> None:
    """One layer of a cohort keeps the target, unless it is one prompt that cannot be cut further."""
    for event in history.events:
        a, view = event.admission, event.view
        if view.decode.requests == 0 or view.itl_target is None:
            continue
        works = [view.waiting[i].work for i in a.prompts or ()]
        if a.continues:
            works.append(view.in_flight[0].work)
        total = works[0]
        for work in works[1:]:
            total = total + work
        cut = total.tokens > a.tokens
        if cut:
            total = CohortWork(a.tokens, total.pairs / total.tokens * a.tokens)
        budget = view.itl_target / (1 + estimator.margin)
        if estimator.merged(view.decode, total).anywhere().seconds(1) > budget:
            assert len(works) == 1, "prompts that joined break the target"
            assert total.tokens < 2 * SMALLEST_CHUNK or a.overtakes, "a smaller chunk would keep it"


def check_joining_pays(history: History, estimator: Estimator) -> None:
    """Two prompts and nobody else: they go together if that delays them by less than it saves."""
    for event in history.events:
        a, view = event.admission, event.view
        if len(view.waiting) == 2 and not view.in_flight and a.prompts is not None:
            one, two = (view.waiting[i].work for i in (0, 1))
            alone = [duration(estimator, view, work) for work in (one, two)]
            together = duration(estimator, view, one + two)
            first = alone[a.prompts[0]]
            second = alone[1 - a.prompts[0]]
            if abs(2 * (together - first) - second) > 1e-9 and (one + two).tokens <= a.tokens:
                assert (len(a.prompts) == 2) == (2 * (together - first) < second)


def duration(estimator: Estimator, view: QueueView, work: CohortWork) -> float:
    """Seconds until ``work`` is through all layers beside the view's decode, within the target."""
    layers = estimator.num_layers
    line = estimator.merged(view.decode, work)
    limit = view.itl_target
    limit = (
        max(KNEE * estimator.decode(view.decode), COMFORT)
        if limit is None
        else limit / (1 + estimator.margin)
    )
    iterations = -(-layers // max(1, line.anywhere().layers_within(limit)))
    return iterations * line.seconds(0) + line.seconds(layers) - line.seconds(0)


# --- what is learnt of the host ------------------------------------------------------------------


def check_launches_are_covered_and_bounded(launches: Any) -> None:
    """19 of 20 launches are within the factor, of graphs and of eager groups apart, though one in twenty
    stalls; a host that stands still takes it no farther than its bound."""
    rng = random.Random(4)
    within = 0
    for i in range(4000):
        for graphed, truth in ((True, 0.6), (False, 2.0)):
            seconds = truth * rng.lognormvariate(0, 0.15)
            factor = launches.factor(graphed)
            within += i >= 1000 and factor is not None and seconds <= factor
            launches.observe(seconds, 1.0, graphed)
            if i % 20 == 0:
                launches.observe(1e4 * seconds, 1.0, graphed)
                assert i < 100 or launches.factor(graphed) < 1.8 * truth
    assert 0.93 <= within / 6000 <= 0.985
    for graphed, truth in ((True, 0.6), (False, 2.0)):
        assert truth < launches.factor(graphed) < 1.6 * truth
    for _ in range(200):
        launches.observe(1e6, 1.0, True)
    assert launches.graphs == LIMIT


def check_host_and_gpu_are_told_apart(est: Any) -> None:
    """A slow host's launches are planned by, and say nothing of what the GPU takes."""
    decode, cohort = DecodeWork(4, 8000), CohortWork.of_prompt(300)
    whole = Iteration(decode, cohort, 48, True, True)
    line = est.model.merged(decode, cohort).at(True, True)
    for _ in range(100):
        est.observe_launch(whole, 3 * line.host_seconds(48))
    for _ in range(100):
        est.observe([whole], 3 * line.host_seconds(48))
    assert 1 <= est.launch(whole) / (3 * line.host_seconds(48)) < 1.25
    assert est.correction.cohort == est.correction.decode == 1.0
