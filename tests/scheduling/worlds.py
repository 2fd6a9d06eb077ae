"""Worlds that the scheduling tests run the planner in: estimators to draw, and a small serving loop.

The loop's iterations take what the planner predicts, so everything that happens in it is the policy's
doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st
from layered_sglang.model_zoo.published import QWEN3_8B, QWEN3_30B_A3B
from layered_sglang.scheduling import (
    WINDOW,
    Admission,
    CohortView,
    CohortWork,
    CostModel,
    DecodeWork,
    Estimator,
    InFlight,
    ModelShape,
    Planner,
    QueueView,
    WaitingPrompt,
)
from layered_sglang.scheduling.correction import OnlineCorrection
from layered_sglang.scheduling.devices import nominal_coefficients

MOE = ModelShape.from_config(QWEN3_30B_A3B)
DENSE = ModelShape.from_config(QWEN3_8B)


def estimator(
    device: str | None = "H200",
    shape: ModelShape = MOE,
    graph_rows: int = 4096,
    overlap: bool = True,
    margin: float = 0.05,
) -> Estimator:
    model = CostModel(shape, nominal_coefficients(device)[0], graph_rows, overlap=overlap)
    return Estimator(model, OnlineCorrection(2.0, margin=margin))


estimators = st.builds(
    estimator,
    device=st.sampled_from(["H200", "H100", "A100", "L40S", None]),
    shape=st.sampled_from([MOE, DENSE]),
    graph_rows=st.sampled_from([0, 1024, 4096]),
    overlap=st.booleans(),
    margin=st.floats(0, 0.5),
)
decodes = st.builds(
    lambda requests, each: DecodeWork(requests, requests * each),
    st.integers(0, 256),
    st.integers(1, 20_000),
)
works = st.builds(CohortWork.of_prompt, st.integers(1, 16_384), st.integers(0, 8192))
targets = st.none() | st.floats(0.003, 1.0)


@dataclass(frozen=True)
class Prompt:
    """A request of the loop: it decodes nothing, so that the world ends."""

    arrival: float
    tokens: int
    priority: int = 0


@dataclass
class Begun:
    """A cohort in flight."""

    prompts: list[int]
    work: CohortWork
    next_layer: int = 0
    delayed: float = 0.0
    chunk_of: int | None = None
    overtaking: bool = False


@dataclass
class Event:
    """An admission and what it was decided on."""

    time: float
    view: QueueView
    ids: list[int]  # of view.waiting
    admission: Admission


@dataclass
class History:
    events: list[Event] = field(default_factory=list)
    admitted: dict[int, float] = field(default_factory=dict)
    finished: dict[int, float] = field(default_factory=dict)
    layers_run: dict[int, list[int]] = field(default_factory=dict)  # per prompt, chunk by chunk


def serve(
    planner: Planner,
    prompts: Sequence[Prompt],
    decode: DecodeWork = DecodeWork(16, 32_000),  # noqa: B008
    itl_target: float | None = 0.030,
    max_tokens: int = 8192,
    keep_order: bool = False,
) -> History:
    """Run until every prompt's last layer, beside an unchanging decode batch."""
    history = History()
    num_layers = planner.estimator.num_layers
    now, waiting, stack = 0.0, [], []  # type: float, list[int], list[Begun]
    left = {i: p.tokens for i, p in enumerate(prompts)}
    chunked: int | None = None  # the long prompt whose chunks are not all through
    delayed_between = 0.0
    coming = sorted(range(len(prompts)), key=lambda i: (prompts[i].arrival, i))
    for _ in range(200_000):
        while coming and prompts[coming[0]].arrival <= now:
            waiting.append(coming.pop(0))
            waiting.sort(key=lambda i: (-prompts[i].priority, prompts[i].arrival, i))
        between = not stack and chunked is not None
        in_flight = [
            InFlight(
                b.work,
                num_layers - b.next_layer,
                now - min(prompts[i].arrival for i in b.prompts),
                b.delayed,
                max(prompts[i].priority for i in b.prompts),
            )
            for b in stack
        ]
        if between:
            assert chunked is not None
            done = prompts[chunked].tokens - left[chunked]
            in_flight.append(
                InFlight(
                    CohortWork.of_prompt(left[chunked], done),
                    num_layers,
                    now - prompts[chunked].arrival,
                    delayed_between,
                    prompts[chunked].priority,
                    between_chunks=True,
                )
            )
        ids = waiting[:WINDOW]
        view = QueueView(
            [
                WaitingPrompt(
                    work := CohortWork.of_prompt(prompts[i].tokens),
                    planner.need(work),
                    now - prompts[i].arrival,
                    prompts[i].priority,
                )
                for i in ids
            ],
            in_flight,
            decode,
            max_tokens,
            itl_target,
            keep_order,
        )
        admission = planner.admit(view) if ids or in_flight else None
        if admission is not None:
            chosen = (
                [ids[i] for i in admission.prompts] if admission.prompts is not None else list(ids)
            )
            members = [chunked] if admission.continues and chunked is not None else []
            room, work = admission.tokens, None
            cohort = Begun([], CohortWork(0, 0, 0), overtaking=admission.overtakes)
            for i in [*members, *chosen]:
                if room == 0 or (cohort.prompts and left[i] > room):
                    break  # SGLang's queue stays where its head does not fit
                take = min(left[i], room)
                work = CohortWork.of_prompt(take, prompts[i].tokens - left[i])
                cohort.prompts.append(i)
                cohort.work = cohort.work + work
                left[i] -= take
                room -= take
                cohort.chunk_of = i if left[i] else None
                if i in waiting:
                    waiting.remove(i)
                    history.admitted[i] = now
            history.events.append(Event(now, view, list(ids), admission))
            assert cohort.prompts, "an admission that admits nobody"
            if admission.overtakes:
                if stack:
                    stack[-1].delayed += admission.delay
                else:
                    delayed_between += admission.delay
            else:
                chunked, delayed_between = cohort.chunk_of, 0.0
            stack.append(cohort)
        if not stack:
            if not coming:
                break
            now = max(now, prompts[coming[0]].arrival)
            continue
        cohort = stack[-1]
        if admission is not None and admission.alone:
            now += planner.estimator.prefill(cohort.work)
            end = num_layers
        else:
            group = planner.next_layer_group(
                CohortView(num_layers, cohort.next_layer, cohort.work, decode, itl_target)
            )
            assert group.start == cohort.next_layer < group.end <= num_layers
            now += planner.predict(decode, cohort.work, group.end - group.start)
            end = group.end
        for i in cohort.prompts:
            history.layers_run.setdefault(i, []).extend(range(cohort.next_layer, end))
        cohort.next_layer = end
        if end == num_layers:
            stack.pop()
            for i in cohort.prompts:
                if left[i] == 0:
                    history.finished[i] = now
    assert not waiting and not coming and not stack, "the world did not end"
    return history
