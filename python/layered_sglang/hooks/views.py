"""SGLang's requests and batches in the planner's words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from layered_sglang.scheduling import CohortWork, DecodeWork

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

#: A request's own inter-token target: ``"custom_params": {"itl_slo_ms": 40}`` among its sampling
#: parameters.
ITL_SLO = "itl_slo_ms"


class TargetError(ValueError):
    """A request's target that is none; the message is for its sender."""


def unfinished(batch: ScheduleBatch) -> list[int]:
    """Indices of a batch's requests that go on."""
    return [i for i, req in enumerate(batch.reqs) if not req.finished()]


def decode_work(reqs: Iterable[Req]) -> DecodeWork:
    """The decode rows of running requests."""
    count = context = 0
    for req in reqs:
        count += 1
        context += len(req.origin_input_ids) + len(req.output_ids)
    return DecodeWork(count, context)


def batch_decode_work(batch: ScheduleBatch) -> DecodeWork:
    """The rows of a batch prepared to decode. SGLang keeps their lengths, so no request is asked."""
    lengths = batch.seq_lens_cpu
    if lengths is None:
        return decode_work(batch.reqs)
    return DecodeWork(len(batch.reqs), sum(lengths.tolist()))


def cohort_work(batch: ScheduleBatch) -> CohortWork:
    """The rows of a prefill batch."""
    work = CohortWork(0, 0.0, 0)
    for prefix, tokens in zip(batch.prefix_lens, batch.extend_lens, strict=True):
        work += CohortWork.of_prompt(tokens, prefix)
    return work


def holds_images(req: Req) -> bool:
    """Whether the prompt holds anything but text: such are SGLang's own to prefill."""
    return req.multimodal_inputs is not None


def itl_target(req: Req) -> float | None:
    """A request's own inter-token target in seconds, if it has one.

    Raises:
        TargetError: if the field is there and is no positive number.
    """
    params = req.sampling_params.custom_params
    if not isinstance(params, dict) or ITL_SLO not in params:
        return None
    value = params[ITL_SLO]
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (numeric and 0 < value < math.inf):
        raise TargetError(
            f"custom_params.{ITL_SLO} must be a positive number of milliseconds, got {value!r}"
        )
    return value / 1000


def strictest_target(reqs: Iterable[Req], default: float | None) -> float | None:
    """The strictest target of running requests, seconds; ``default`` is that of those without one."""
    targets = [
        target
        for req in reqs
        if (target := getattr(req, "layered_itl_target", None) or default) is not None
    ]
    return min(targets, default=None)
