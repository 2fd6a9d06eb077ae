"""What becomes of SGLang's queue where it is shown in part, and where requests are put back in it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

hooked = pytest.importorskip("layered_sglang.hooks.scheduler")
from layered_sglang.hooks import cohorts_in_flight  # noqa: E402
from layered_sglang.hooks.admission import AdmissionGate  # noqa: E402
from layered_sglang.hooks.cohort_admission import CohortAdmission  # noqa: E402
from layered_sglang.scheduling import Admission  # noqa: E402
from sglang.srt.disaggregation.utils import DisaggregationMode  # noqa: E402


def request(rid, priority, **more):
    stats = SimpleNamespace(
        wait_queue_entry_time=0.0,
        set_wait_queue_entry_time=lambda: None,
        trace_ctx=SimpleNamespace(abort=lambda abort_info: None),
    )
    params = SimpleNamespace(custom_params=None)
    return SimpleNamespace(
        rid=rid, priority=priority, time_stats=stats, sampling_params=params, seqlen=10, **more
    )


@pytest.fixture
def scheduler():
    """SGLang's own handling of its queue, and ours, without anything to schedule for."""
    s = object.__new__(hooked.LayeredScheduler)
    args = SimpleNamespace(schedule_policy="fcfs")
    s.__dict__ |= {
        "server_args": args,
        "page_size": 1,
        "chunked_prefill_size": 2048,
        "chunked_req": None,
        "truncation_align_size": None,
        "waiting_queue": [],
        "max_queued_requests": None,
        "enable_priority_scheduling": True,
        "schedule_low_priority_values_first": False,
        "abort_on_priority_when_disabled": False,
        "enable_hicache_storage": False,
        "enable_hierarchical_cache": False,
        "enable_overlap": False,
        "disaggregation_mode": DisaggregationMode.NULL,
        "model_config": SimpleNamespace(is_multimodal=False),
        "running_batch": SimpleNamespace(reqs=[], batch_is_full=True),
        "layered_metrics": SimpleNamespace(count=lambda *_: None),
        "_clock": SimpleNamespace(now=0.0),
    }
    s.aborted = []
    channel = SimpleNamespace(send_output=lambda output, req: s.aborted.append(req.rid))
    s.ipc_channels = SimpleNamespace(send_to_tokenizer=channel)
    s._cohorts = cohorts_in_flight.CohortsInFlight(s)
    s._admission = SimpleNamespace(gate=AdmissionGate(s, None))
    s._prefetch_kvcache = lambda req: None
    return s


def rids(s):
    return [req.rid for req in s.waiting_queue]


def test_what_takes_anothers_place_while_the_queue_is_shown_in_part_is_kept(scheduler):
    s = scheduler
    s.max_queued_requests = 1
    low, high = request("low", 1), request("high", 2)
    s.waiting_queue = [low]
    with s._admission.gate.offer(Admission((0,), 100), [low]):
        s._add_request_to_queue(high)  # as when its grammar is compiled
    assert s.aborted == ["low"]
    assert rids(s) == ["high"]


def test_what_is_queued_while_the_queue_is_shown_in_part_comes_last(scheduler):
    s = scheduler
    first, second, late = (request(name, 1) for name in ("first", "second", "late"))
    s.waiting_queue = [first, second]
    with s._admission.gate.offer(Admission((1,), 100), [first, second]):
        s._add_request_to_queue(late)
        assert rids(s) == ["second"]
    assert rids(s) == ["first", "second", "late"]


def test_requests_taken_back_find_room_in_a_full_queue(scheduler, monkeypatch):
    """They were admitted once, and are as many as they were then."""
    s = scheduler
    s.max_queued_requests = 2
    monkeypatch.setattr(cohorts_in_flight, "release_req", lambda **_: None)
    for name in ("req_to_token_pool", "token_to_kv_pool_allocator", "tree_cache"):
        setattr(s, name, None)
    reqs = [request(f"r{i}", 1, session=None, to_finish=None) for i in range(4)]
    s.waiting_queue = [request("waits", 1)]
    s._cohorts.in_flight.append(
        SimpleNamespace(
            reqs=reqs,
            next_layer=3,
            num_layers=8,
            state=SimpleNamespace(drop=lambda: None),
            batch=SimpleNamespace(hicache_consumer_index=-1),
        )
    )
    s._cohorts.restart_all("the weights change")
    assert rids(s) == ["r0", "r1", "r2", "r3", "waits"]
    assert s.aborted == []
    assert s.max_queued_requests == 2
    assert not s.running_batch.batch_is_full


def test_the_log_of_a_batch_counts_all_that_waits(scheduler, monkeypatch):
    """SGLang counts what it is shown, one prompt of three."""
    s = scheduler
    s.waiting_queue = [request(str(i), 1) for i in range(3)]
    shown = []

    def pending(deduct=0):
        return sum(req.seqlen for req in s.waiting_queue) - deduct

    def sglangs(running_batch):
        shown[:] = rids(s)
        (req,), s.waiting_queue = s.waiting_queue, []
        stats = SimpleNamespace(num_pending_tokens=pending())
        batch = SimpleNamespace(reqs=[req], prefill_stats=stats, chunked_req=None)
        return SimpleNamespace(batch_to_run=batch, running_batch=running_batch)

    s.load_inquirer = SimpleNamespace(_get_num_pending_tokens=pending)
    policy = SimpleNamespace(overtakes=True, admit=lambda view: Admission((1,), 100, alone=True))
    planning = SimpleNamespace(planner=policy, estimator=None, target=lambda reqs: None)
    admission = CohortAdmission(s, s._cohorts, planning, SimpleNamespace(now=0.0), 8)
    monkeypatch.setattr(admission.gate, "view", lambda *_: (None, list(s.waiting_queue)))
    plan = admission.admit(SimpleNamespace(reqs=[]), sglangs)
    assert shown == ["1"]
    assert plan.batch_to_run.prefill_stats.num_pending_tokens == 20
