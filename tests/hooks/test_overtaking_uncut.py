"""A prompt that overtakes is admitted whole or not at all, whatever SGLang would cut it for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

admission = pytest.importorskip("layered_sglang.hooks.admission")
schedule_policy = pytest.importorskip("sglang.srt.managers.schedule_policy")
from layered_sglang.scheduling import Admission  # noqa: E402
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator  # noqa: E402

PROMPT, CHUNK = 300, 1024


class ShortOfWindows(SWATokenToKVPoolAllocator):
    """Room for the prompt in the pool of whole attention, not in the other one."""

    def __init__(self) -> None:
        pass

    def full_available_size(self) -> int:
        return 10_000

    def swa_available_size(self) -> int:
        return PROMPT // 2


@pytest.fixture
def prompt():
    return SimpleNamespace(
        sampling_params=SimpleNamespace(ignore_eos=False, max_new_tokens=4),
        full_untruncated_fill_ids=range(PROMPT),
        prefix_indices=(),
        output_ids=(),
        host_hit_length=0,
        swa_host_hit_length=0,
        retracted_stain=False,
        last_node=None,
        needs_host_load_back=lambda: False,
        init_next_round_input=lambda tree, cow_mamba: None,
        set_extend_range=lambda start, end: None,
    )


@pytest.fixture
def scheduler(prompt):
    locked = SimpleNamespace(swa_uuid_for_lock=None)
    return SimpleNamespace(
        page_size=1,
        chunked_prefill_size=CHUNK,
        server_args=SimpleNamespace(schedule_policy="fcfs"),
        enable_priority_scheduling=False,
        schedule_low_priority_values_first=False,
        truncation_align_size=None,
        chunked_req=None,
        waiting_queue=[prompt],
        tree_cache=SimpleNamespace(
            disable=False,
            sliding_window_size=64,
            supports_mamba=lambda: False,
            is_tree_cache=lambda: False,
            full_evictable_size=lambda: 0,
            swa_evictable_size=lambda: 0,
            inc_lock_ref=lambda node: locked,
            dec_lock_ref=lambda node: None,
        ),
    )


def admit(scheduler, monkeypatch):
    """SGLang's own admission of what is in the queue."""
    monkeypatch.setattr(schedule_policy, "is_dsa_prefill_cp_in_seq_split", lambda: False)
    monkeypatch.setattr(schedule_policy, "is_prefill_context_parallel_enabled", lambda: False)
    size = scheduler.chunked_prefill_size
    adder = schedule_policy.PrefillAdder(
        1, scheduler.tree_cache, ShortOfWindows(), None, 1.0, 10**6, size
    )
    for req in scheduler.waiting_queue:
        adder.add_one_req(req, False, scheduler.truncation_align_size)
    return adder


@pytest.mark.parametrize("overtakes", [True, False])
def test_the_pool_of_windows_is_short(scheduler, prompt, overtakes, monkeypatch):
    gate = admission.AdmissionGate(scheduler, None)
    with gate.offer(Admission((0,), CHUNK, overtakes=overtakes), [prompt]):
        adder = admit(scheduler, monkeypatch)
    if overtakes:
        assert adder.can_run_list == [] and adder.new_chunked_req is None
    else:  # SGLang's own way: a piece that fits
        assert adder.can_run_list == [prompt] and adder.new_chunked_req is prompt
    assert scheduler.truncation_align_size is None
