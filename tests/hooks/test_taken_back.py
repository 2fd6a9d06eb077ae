"""Requests taken back when the KV pool is full: what is released, and what of late results counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

cohorts_in_flight = pytest.importorskip("layered_sglang.hooks.cohorts_in_flight")
first_tokens = pytest.importorskip("layered_sglang.hooks.first_tokens")


def result(logprobs, lengths, starts):
    return SimpleNamespace(
        logits_output=SimpleNamespace(input_token_logprobs=torch.tensor(logprobs)),
        copy_done=None,
        extend_input_len_per_req=lengths,
        extend_logprob_start_len_per_req=starts,
    )


@pytest.mark.parametrize(
    ("retracted", "left"),
    [
        ([], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        ([0], [3.0, 4.0, 5.0]),
        ([1], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        ([2], [0.0, 1.0, 2.0]),
        ([0, 2], []),
        ([0, 1, 2], []),
    ],
)
def test_others_keep_their_own_prompt_logprobs(retracted, left):
    """Three prompts: of 3 tokens, of 5 without log-probabilities, of 4 from the second on."""
    reqs = [SimpleNamespace(is_retracted=i in retracted) for i in range(3)]
    got = result([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [3, 5, 4], [0, 5, 1])
    first_tokens.leave_out_retracted(SimpleNamespace(reqs=reqs), got)
    assert got.logits_output.input_token_logprobs.tolist() == left


def test_a_result_without_prompt_logprobs_stays():
    got = SimpleNamespace(logits_output=SimpleNamespace(input_token_logprobs=None))
    reqs = [SimpleNamespace(is_retracted=True)]
    first_tokens.leave_out_retracted(SimpleNamespace(reqs=reqs), got)
    assert got.logits_output.input_token_logprobs is None


def scheduler(free, evictable, windows=False, states=False, chunked=True):
    req = SimpleNamespace(full_untruncated_fill_ids=range(1000), prefix_indices=range(400))
    return SimpleNamespace(
        chunked_req=req if chunked else None,
        chunked_prefill_size=250,
        page_size=1,
        is_hybrid_swa=windows,
        token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: free),
        tree_cache=SimpleNamespace(
            supports_mamba=lambda: states,
            evictable_size=lambda: (evictable, 0) if states else evictable,
            full_evictable_size=lambda: evictable,
        ),
    )


@pytest.mark.parametrize(
    ("of", "has_room"),
    [
        ({"free": 251, "evictable": 0}, True),
        ({"free": 250, "evictable": 0}, False),
        ({"free": 0, "evictable": 250}, False),
        ({"free": 100, "evictable": 151}, True),
        ({"free": 100, "evictable": 151, "states": True}, True),
        ({"free": 0, "evictable": 0, "states": True}, False),
        ({"free": 0, "evictable": 0, "windows": True}, True),  # SGLang lets it wait
        ({"free": 0, "evictable": 0, "chunked": False}, True),
    ],
)
def test_whether_the_next_chunk_has_room(of, has_room):
    assert cohorts_in_flight.CohortsInFlight(scheduler(**of)).next_chunk_has_room() is has_room


def test_a_chunk_in_flight_has_its_slots():
    of = scheduler(free=0, evictable=0)
    cohorts = cohorts_in_flight.CohortsInFlight(of)
    cohorts.in_flight.append(SimpleNamespace(reqs=[of.chunked_req]))
    assert cohorts.next_chunk_has_room()
