"""A cohort's first tokens, on their way from its last layer group to SGLang's result processing."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult

from layered_sglang.hooks.cohort import Cohort, CohortResult


def relay_first_tokens(
    scheduler: Any, cohort: Cohort, decode: ScheduleBatch, result: GenerationBatchResult
) -> CohortResult:
    """What ``Scheduler.run_batch`` does with a prefill batch's result after the forward.

    Args:
        scheduler: SGLang's, with its streams and the relay of tokens to the next forward.
        cohort: one whose last layer group was just launched.
        decode: the batch that ran beside it.
        result: the cohort's own, from the worker.
    """
    batch = cohort.batch
    batch.forward_iter, batch.launch_ts = decode.forward_iter, cohort.admitted_at
    if scheduler.enable_overlap:
        with scheduler.forward_stream_ctx:
            scheduler.future_map.publish(batch.req_pool_indices, batch.seq_lens + 1)
            scheduler._relay_forward_payload(batch.req_pool_indices, result)
            result.copy_done = scheduler.device_module.Event()
            scheduler.copy_stream.wait_stream(scheduler.forward_stream)
            with scheduler.copy_stream_ctx:
                result.copy_to_cpu(
                    return_logprob=batch.return_logprob,
                    return_hidden_states=batch.return_hidden_states,
                )
    else:
        scheduler._relay_forward_payload(batch.req_pool_indices, result)
    batch.input_ids = None  # from here on its tokens come from the relay
    if batch.return_logprob or batch.return_hidden_states:
        result.extend_input_len_per_req = [req.extend_range.length for req in batch.reqs]
    if batch.return_logprob:
        result.extend_logprob_start_len_per_req = batch.extend_logprob_start_lens
    return CohortResult(batch.copy(), result)


def leave_out_retracted(batch: ScheduleBatch, result: GenerationBatchResult) -> None:
    """Take the prompt log-probabilities of requests retracted since out of a prefill batch's result.

    SGLang passes these requests over, but not their rows: the next request would get them as its own.
    """
    output = result.logits_output
    rows = None if output is None else output.input_token_logprobs
    if rows is None or not any(req.is_retracted for req in batch.reqs):
        return
    if result.copy_done is not None:
        result.copy_done.synchronize()
    lengths, starts = result.extend_input_len_per_req, result.extend_logprob_start_len_per_req
    counts = [max(0, n - start) for n, start in zip(lengths, starts, strict=True)]
    parts = zip(rows[: sum(counts)].split(counts), batch.reqs, strict=True)
    left = [part for part, req in parts if not req.is_retracted]
    output.input_token_logprobs = torch.cat([rows[:0], *left])


def forget_unsent_logprobs(reqs: list[Req]) -> None:
    """Let requests retracted before their first token came send its logprob when it does come.

    SGLang's streamer reports on them while they have no token, and counts one logprob as sent.
    """
    for req in reqs:
        if req.is_retracted and not req.output_ids:
            req.send_output_token_logprobs_offset = 0
