"""Which of the batches that SGLang admits are layered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from layered_sglang.hooks.cohort_admission import becomes_cohort


def admits(
    decoding: int = 1, scores: bool = False, slots: bool = True, image=None, **batch
) -> bool:
    """Whether a prompt becomes a cohort beside ``decoding`` requests."""
    running = SimpleNamespace(
        reqs=[SimpleNamespace(finished=lambda: False)] * decoding,
        is_prefill_only=scores,
        check_decode_mem=lambda selected_indices: slots,
    )
    prompt = {"input_embeds": None, "replace_embeds": None} | batch
    admitted = SimpleNamespace(reqs=[SimpleNamespace(multimodal_inputs=image)], **prompt)
    plan = SimpleNamespace(running_batch=running, batch_to_run=admitted)
    return becomes_cohort(plan)


def test_prompts_beside_decode_are_layered():
    assert admits()


@pytest.mark.parametrize(
    "what",
    [
        {"decoding": 0},
        {"scores": True},
        {"slots": False},
        {"image": object()},
        {"input_embeds": object()},
        {"replace_embeds": object()},
    ],
    ids=lambda what: next(iter(what)),
)
def test_others_are_sglangs_own_to_prefill(what):
    assert not admits(**what)
