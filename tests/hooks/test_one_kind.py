"""Prompts with images are admitted apart from prompts that may be layered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

admission = pytest.importorskip("layered_sglang.hooks.admission")


def requests(kinds: str) -> list[SimpleNamespace]:
    """``t``: of text, ``i``: with an image; named by their places."""
    return [
        SimpleNamespace(name=str(place), multimodal_inputs=object() if kind == "i" else None)
        for place, kind in enumerate(kinds)
    ]


def names(reqs) -> str:
    return "".join(req.name for req in reqs)


@pytest.fixture
def scheduler():
    return SimpleNamespace(
        page_size=1,
        chunked_prefill_size=2048,
        server_args=SimpleNamespace(schedule_policy="fcfs"),
        enable_priority_scheduling=False,
        schedule_low_priority_values_first=False,
        model_config=SimpleNamespace(is_multimodal=True),
        chunked_req=None,
        waiting_queue=[],
    )


@pytest.mark.parametrize(
    ("waiting", "chunked", "shown"),
    [
        ("ttit", "", "013"),
        ("itti", "", "03"),
        ("ttt", "", "012"),
        ("ii", "", "01"),
        ("", "", ""),
        ("iti", "t", "1"),
        ("tit", "i", "1"),
        ("ii", "t", ""),
    ],
)
def test_whichever_kind_is_first(scheduler, waiting, chunked, shown):
    scheduler.waiting_queue = requests(waiting)
    scheduler.chunked_req = requests(chunked)[0] if chunked else None
    with admission.AdmissionGate(scheduler, None).one_kind(None):
        assert names(scheduler.waiting_queue) == shown
    assert names(scheduler.waiting_queue) == "0123"[: len(waiting)]


def test_the_queue_keeps_its_order(scheduler):
    """What is admitted is gone, what is queued meanwhile is last."""
    scheduler.waiting_queue = requests("titti")
    with admission.AdmissionGate(scheduler, None).one_kind(None):
        scheduler.waiting_queue = [*scheduler.waiting_queue[1:], SimpleNamespace(name="new")]
    assert names(scheduler.waiting_queue) == "1234new"


def test_the_queue_is_ordered_before_it_is_cut(scheduler):
    scheduler.enable_priority_scheduling = True
    scheduler.policy = SimpleNamespace(calc_priority=lambda queue, running: queue.reverse())
    scheduler.waiting_queue = requests("ttii")
    with admission.AdmissionGate(scheduler, None).one_kind(None):
        assert names(scheduler.waiting_queue) == "32"
    assert names(scheduler.waiting_queue) == "3210"


def test_a_model_of_text_alone_is_not_asked(scheduler):
    scheduler.model_config.is_multimodal = False
    scheduler.waiting_queue = waiting = [object()]
    with admission.AdmissionGate(scheduler, None).one_kind(None):
        assert scheduler.waiting_queue is waiting
