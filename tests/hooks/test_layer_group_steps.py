"""Who runs a cohort's layer groups, with decode and apart from it, and when each is launched."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from layered_sglang.hooks.cohort import Cohort
from layered_sglang.hooks.layer_group_steps import LayerGroupSteps
from layered_sglang.hooks.steps_before_decode import StepsBeforeDecode
from layered_sglang.scheduling import CohortWork, DecodeWork, LayerGroup

LAYERS = 6
BOTH = [LayerGroupSteps, StepsBeforeDecode]


class Cohorts:
    def __init__(self, *cohorts: Cohort) -> None:
        self.in_flight, self.launched = list(cohorts), None

    def remove(self, cohort: Cohort) -> None:
        self.in_flight.remove(cohort)


class Planning:
    """Chooses layer groups that end where the test says, one after another."""

    def __init__(self, *ends: int) -> None:
        self.ends, self.asked = list(ends), []
        self.planner = self

    def view(self, cohort, rows, reqs):
        return cohort.view(rows, None)

    def next_layer_group(self, view) -> LayerGroup:
        self.asked.append(view)
        return LayerGroup(view.next_layer, self.ends.pop(0))


def running(*lengths: int) -> SimpleNamespace:
    """A batch that decodes, of requests with so many tokens, which SGLang may not know yet."""
    reqs = [
        SimpleNamespace(
            rid=str(i), origin_input_ids=range(n), output_ids=(), finished=lambda: False
        )
        for i, n in enumerate(lengths)
    ]
    return SimpleNamespace(reqs=reqs, seq_lens_cpu=None, batch_size=lambda: len(reqs))


def a_cohort(next_layer: int = 0) -> Cohort:
    cohort = Cohort(SimpleNamespace(reqs=[], extend_num_tokens=30), LAYERS, 0.0, next_layer)
    cohort.__dict__["work"] = CohortWork(30, 465.0)
    return cohort


def plan(batch, kept=None) -> SimpleNamespace:
    return SimpleNamespace(batch_to_run=batch, running_batch=kept or batch)


def iteration(steps, batch):
    """An iteration in which no prompt is admitted, as SGLang's scheduler plans it."""
    ending = steps.end_before_decode(batch)
    return ending or steps.beside(plan(batch if batch.reqs else None, batch))


def test_layer_groups_run_with_decode_to_the_last_one():
    cohort, decode = a_cohort(), running(10, 20)
    cohorts = Cohorts(cohort)
    steps = LayerGroupSteps(None, cohorts, Planning(4, LAYERS))
    assert iteration(steps, decode).batch_to_run is decode
    step = steps.take()
    assert (step.layers, step.decode) == (LayerGroup(0, 4), DecodeWork(2, 30))
    assert steps.planned is None and cohorts.in_flight == [cohort]
    assert iteration(steps, decode).batch_to_run is decode
    assert steps.take().is_last
    assert not cohorts.in_flight and cohorts.launched is cohort


def test_before_decode_the_last_layer_group_takes_decodes_place():
    cohort, decode = a_cohort(), running(10, 20)
    cohorts = Cohorts(cohort)
    steps = StepsBeforeDecode(None, cohorts, Planning(4, LAYERS))
    assert iteration(steps, decode).batch_to_run is decode
    assert steps.take().layers == LayerGroup(0, 4)
    ending = iteration(steps, decode)
    assert ending.batch_to_run is cohort.batch and ending.running_batch is decode
    assert steps.take().layers == LayerGroup(4, LAYERS)
    assert not cohorts.in_flight and cohorts.launched is None, "SGLang merges its own prefill"


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(("start", "step"), [(0, None), (2, LayerGroup(2, LAYERS))])
def test_with_nobody_decoding_the_rest_is_a_prefill(kind, start, step):
    """One that has run no layer yet is SGLang's own: nothing of it is to be carried on."""
    cohort = a_cohort(start)
    cohorts, empty = Cohorts(cohort), running()
    steps = kind(None, cohorts, Planning(LAYERS))
    planned = iteration(steps, empty)
    assert planned.batch_to_run is cohort.batch and planned.running_batch is empty
    taken = steps.take()
    assert step == (None if taken is None else taken.layers)
    assert not cohorts.in_flight and cohorts.launched is None


@pytest.mark.parametrize(("start", "runs"), [(3, LayerGroup(3, LAYERS - 1)), (LAYERS - 1, None)])
def test_before_decode_the_last_layer_never_runs_beside_it(start, runs):
    """The answer is another one when some rows were retracted after it was first given."""
    cohort, decode = a_cohort(start), running(10)
    cohorts = Cohorts(cohort)
    steps = StepsBeforeDecode(None, cohorts, Planning(LAYERS))
    assert steps.beside(plan(decode)).batch_to_run is decode
    taken = steps.take()
    assert runs == (None if taken is None else taken.layers)
    assert cohorts.in_flight == [cohort]


def asked_twice(steps, first, second) -> list[DecodeWork]:
    """Plan an iteration that ``first`` are expected to decode in and ``second`` do; returns the rows that
    the policy was asked about."""
    assert steps.end_before_decode(first) is None
    steps.beside(plan(second))
    rows = [view.decode for view in steps._planning.asked]
    steps._planning.asked.clear()
    return rows


def test_before_decode_the_policy_is_asked_once_unless_others_decode():
    cohort, decode = a_cohort(), running(10, 20)
    steps = StepsBeforeDecode(None, Cohorts(cohort), Planning(1, 2, 3, 4))
    assert asked_twice(steps, decode, decode) == [DecodeWork(2, 30)]
    assert steps.take().layers == LayerGroup(0, 1)
    # One was retracted.
    assert asked_twice(steps, decode, running(10)) == [DecodeWork(2, 30), DecodeWork(1, 10)]
    assert steps.take().layers == LayerGroup(1, 3), "the second answer counts"
    assert asked_twice(steps, decode, decode) == [DecodeWork(2, 30)]
    assert steps.take().layers == LayerGroup(3, 4)


def test_before_decode_an_answer_is_not_kept_for_the_next_iteration():
    """Nor used for the same view: the estimator may have learnt."""
    cohort, decode = a_cohort(), running(10)
    steps = StepsBeforeDecode(None, Cohorts(cohort), Planning(2, 3))
    assert steps.end_before_decode(decode) is None  # and something keeps decode from being planned
    assert asked_twice(steps, decode, decode) == [DecodeWork(1, 10)] * 2
    assert steps.take().layers == LayerGroup(0, 3)


@contextmanager
def named(log, name):
    log.append(f"on {name}")
    yield
    log.append(f"off {name}")


def a_scheduler(log: list[str], overlap: bool) -> SimpleNamespace:
    return SimpleNamespace(
        enable_overlap=overlap,
        enable_lora=False,
        layered_metrics=SimpleNamespace(count=log.append),
        metrics_reporter=SimpleNamespace(is_stats_logging_rank=False),
        schedule_stream="schedule",
        forward_stream=SimpleNamespace(wait_stream=lambda stream: log.append(f"wait {stream}")),
        forward_stream_ctx=named(log, "forward"),
        batch_record_buf=[["older"], ["decode"]],
        batch_record_ct=1,
        tp_worker=SimpleNamespace(
            cohort_inputs=lambda cohort: log.append("inputs"),
            run_layer_group=lambda step: log.append(f"layers {step.layers}"),
        ),
    )


def launch(kind, overlap: bool, own_batch: bool = False):
    """Launch layers 0 … 3; returns what happened, in order, and the scheduler."""
    log, cohort = [], a_cohort()
    cohort.state.forward_batch, cohort.state.inputs = "rows", ["tensors"]
    scheduler, batch = a_scheduler(log, overlap), cohort.batch if own_batch else running(10)
    steps = kind(scheduler, Cohorts(cohort), Planning())
    step = cohort.advance(LayerGroup(0, 3), DecodeWork(1, 10))

    def sglangs():
        log.append("with it" if hasattr(batch, "layer_group_step") else "without")
        return "result"

    assert steps.launch(step, batch, sglangs) == "result"
    assert not hasattr(batch, "layer_group_step"), "the batch lives on"
    return log, scheduler


@pytest.mark.parametrize("kind", BOTH)
def test_a_cohorts_own_batch_has_the_step_in_it(kind):
    log, scheduler = launch(kind, overlap=True, own_batch=True)
    assert log == ["layer_groups", "inputs", "with it"]
    assert scheduler.batch_record_buf == [["older"], ["decode"]], "the worker's result holds it"


def test_with_decode_it_is_one_forward():
    log, _ = launch(LayerGroupSteps, overlap=True)
    assert log == ["layer_groups", "inputs", "with it"]


def test_before_decode_it_is_launched_on_the_forward_stream_and_held_with_the_batch():
    log, scheduler = launch(StepsBeforeDecode, overlap=True)
    assert log == [
        "layer_groups",
        "inputs",
        "on forward",
        "wait schedule",
        f"layers {LayerGroup(0, 3)}",
        "off forward",
        "without",
    ]
    assert scheduler.batch_record_buf == [["older"], ["decode", "rows", ["tensors"]]]


def test_before_decode_without_overlap_there_is_one_stream():
    log, scheduler = launch(StepsBeforeDecode, overlap=False)
    assert log == ["layer_groups", "inputs", f"layers {LayerGroup(0, 3)}", "without"]
    assert scheduler.batch_record_buf == [["older"], ["decode"]]
