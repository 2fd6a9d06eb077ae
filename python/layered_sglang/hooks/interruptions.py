"""What interrupts cohorts in flight: aborts, pauses, new weights, a full KV cache pool.

SGLang interrupts the requests of its own batches. A cohort in flight is in none of them, so each of these
also has to reach :class:`~layered_sglang.hooks.cohorts_in_flight.CohortsInFlight`, which ends it.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import AbortReq, PauseGenerationReqInput
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from layered_sglang.hooks.cohorts_in_flight import CohortsInFlight
from layered_sglang.hooks.views import unfinished
from layered_sglang.hooks.weight_updates import WeightUpdates


class InterruptibleScheduler(WeightUpdates):
    """SGLang's scheduler, whose interruptions reach the cohorts in flight.

    Attributes:
        _cohorts: set by the subclass before SGLang's ``__init__``.
    """

    _cohorts: CohortsInFlight
    chunked_req: Req | None  # SGLang's
    _pending_chunked_abort_req: Req | None  # SGLang's

    def weights_will_change(self) -> None:
        """A cohort in flight has passed layers of the old weights only."""
        self._cohorts.restart_all("the weights change")

    def update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch | None:
        in_flight = self._cohorts.in_flight
        while in_flight and not batch.check_decode_mem(selected_indices=unfinished(batch)):
            # The youngest gives way first, as when SGLang retracts; its prompt is computed least.
            self._cohorts.restart(in_flight[-1], "the KV cache pool is full", batch)
        waits = self.chunked_req is not None and not self._cohorts.hold(self.chunked_req)
        if waits and not batch.check_decode_mem(selected_indices=unfinished(batch)):
            self._cohorts.give_way_between_chunks(batch)
        return super().update_running_batch(batch)

    def abort_request(self, recv_req: AbortReq) -> None:
        super().abort_request(recv_req)
        self._cohorts.mark_aborted(recv_req)

    def _abort_on_running_timeout(self, running_batch: ScheduleBatch) -> None:
        super()._abort_on_running_timeout(running_batch)
        if envs.SGLANG_REQ_RUNNING_TIMEOUT.get() > 0:
            for cohort in self._cohorts.in_flight:
                super()._abort_on_running_timeout(cohort.batch)

    def pause_generation(self, recv_req: PauseGenerationReqInput) -> Any:
        """Pause; mode ``retract`` takes every request back to the queue, cohorts included."""
        if recv_req.mode == "retract":
            self._cohorts.gather_for_retraction()
        return super().pause_generation(recv_req)

    # --- prompts longer than a cohort -------------------------------------------------------------

    def stash_chunked_request(self, req: Req) -> None:
        """Publish a chunk's KV in the radix cache, once all layers of it have been launched."""
        if self._cohorts.hold(req):
            return
        super().stash_chunked_request(req)

    def process_pending_chunked_abort(self) -> None:
        """Tear a chunked request down, once the cohort it shares with others is through."""
        if self._cohorts.hold(self._pending_chunked_abort_req):
            return
        super().process_pending_chunked_abort()
