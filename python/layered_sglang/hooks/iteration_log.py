"""What was launched and how long it took: for the trace, and for the planner to learn from."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layered_sglang.scheduling import CohortWork, DecodeWork, Iteration
from layered_sglang.telemetry.trace import IterationTrace

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from layered_sglang.hooks.cohort import LayerGroupStep

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LaunchedIteration:
    """An iteration between its launch and its result. Rides on the result object.

    Attributes:
        number: SGLang's forward count.
        kind: decode, prefill, merged, cohort; mixed in SGLang's own mixed chunks.
        launched_at: ``time.monotonic()``, seconds.
        decode: its decode rows.
        cohort: the rows in its active layer group, or ``None``.
        layers: of that group, in layers of average cost; 0 without one.
        first, last: the group is its cohort's first, or last.
        predicted: seconds, or ``None``.
        record: its line in the trace, or ``None`` when nothing is traced.
        launch: seconds from the result before it, or the launch before it, to the end of its own launch;
            0 where no iteration was in flight then.
    """

    number: int
    kind: str
    launched_at: float
    decode: DecodeWork
    cohort: CohortWork | None
    layers: float
    first: bool
    last: bool
    predicted: float | None
    record: dict[str, Any] | None
    launch: float = 0.0

    @property
    def work(self) -> Iteration:
        """In the planner's words."""
        return Iteration(self.decode, self.cohort, self.layers, self.first, self.last)

    @property
    def launches_long(self) -> bool:
        """Whether launching it may take longer than the iteration before it runs."""
        return self.first or self.kind not in ("decode", "merged")


class IterationLog:
    """Times iterations from result to result, and writes their lines to the trace.

    With overlap a result is processed after the next iteration was launched, and its moment is when the
    GPU was done. The time between two results is then what a running request waits between two tokens.
    """

    def __init__(self, trace: IterationTrace) -> None:
        self.trace = trace
        self._last_result = 0.0
        self._last_launch = 0.0
        self._in_flight = 0

    def launch(
        self,
        number: int,
        kind: str,
        batch: ScheduleBatch,
        step: LayerGroupStep | None,
        decode: DecodeWork,
        layers: float = 0.0,
        predicted: float | None = None,
    ) -> LaunchedIteration:
        self._in_flight += 1
        return LaunchedIteration(
            number,
            kind,
            time.monotonic(),
            decode,
            None if step is None else step.cohort.work,
            layers,
            step is not None and step.is_first,
            step is not None and step.is_last,
            predicted,
            describe_iteration(kind, batch, step) if self.trace.enabled else None,
        )

    def launched(self, launched: LaunchedIteration) -> None:
        """The host is through with launching the iteration."""
        now = time.monotonic()
        if self._in_flight > 1:
            launched.launch = now - max(self._last_result, self._last_launch)
        self._last_launch = now

    def finish(self, launched: LaunchedIteration) -> float:
        """The iteration's result is there: write its line. Returns its seconds."""
        now = time.monotonic()
        seconds = now - max(self._last_result, launched.launched_at)
        self._last_result = now
        self._in_flight -= 1
        if launched.record is not None:
            self.trace.write(
                {
                    "iteration": launched.number,
                    "time": launched.launched_at,
                    "kind": launched.kind,
                    **launched.record,
                    "decode_context": launched.decode.context,
                    "seconds": round(seconds, 7),
                    "launch": round(launched.launch, 7),
                    "predicted": launched.predicted,
                }
            )
        return seconds


def iteration_kind(batch: ScheduleBatch, step: LayerGroupStep | None) -> str:
    """What an iteration that runs ``batch``, and ``step`` beside or in it, is called in the trace."""
    if step is not None:
        return "cohort" if batch is step.cohort.batch else "merged"
    if batch.forward_mode.is_mixed():
        return "mixed"
    return "prefill" if batch.forward_mode.is_extend() else "decode"


def describe_iteration(
    kind: str, batch: ScheduleBatch, step: LayerGroupStep | None
) -> dict[str, Any]:
    """The fields that say who runs which layers, taken at launch: later the batch has moved on."""
    extends = kind in ("prefill", "mixed")
    prefill = step.cohort.batch if step is not None else batch if extends else None
    decoding = batch.reqs if batch is not prefill else (batch.decoding_reqs or [])
    decode = [req.rid for req in decoding]
    rows = []
    sampled = list(decode)
    if prefill is not None:
        for req, start, length in zip(
            prefill.reqs, prefill.prefix_lens, prefill.extend_lens, strict=True
        ):
            if req in decoding:  # a decode row that joined a mixed chunk
                continue
            rows.append([req.rid, start, length])
            if (step is None or step.is_last) and req is not prefill.chunked_req:
                sampled.append(req.rid)
    layers = list(step.layers) if step is not None else None
    return {"decode": decode, "cohort": rows, "layers": layers, "samples": sampled}


def log_layer_group(batch: ScheduleBatch, step: LayerGroupStep) -> None:
    """A line in the server's log, beside SGLang's own for its prefill batches: one for a cohort, as it
    begins. Writing one costs the host 0.1 ms."""
    if not step.is_first:
        return
    cohort = step.cohort
    logger.info(
        "Cohort begins, layers: %s of %d, #cohort-req: %d, #cohort-token: %d, #running-req: %d",
        step.layers,
        cohort.num_layers,
        len(cohort.reqs),
        cohort.tokens,
        0 if batch is cohort.batch else batch.batch_size(),
    )
