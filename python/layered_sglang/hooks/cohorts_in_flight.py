"""The cohorts that no batch of SGLang's holds, and how they end before their last layer group."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

from sglang.srt.disaggregation.utils import prepare_abort
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch, release_req
from sglang.srt.mem_cache.common import release_kv_cache

from layered_sglang.hooks.cohort import Cohort

logger = logging.getLogger(__name__)


class CohortsInFlight:
    """Owns one scheduler's cohorts from admission until SGLang has them in a batch.

    A cohort ends early when nobody waits for it any more (:meth:`drop_aborted`), when the KV pool is
    full (:meth:`restart`), when the weights change (:meth:`restart_all`), or when SGLang takes all
    requests back (:meth:`gather_for_retraction`).

    Args:
        scheduler: whose cohorts they are; its queue, caches and batches are SGLang's.

    Attributes:
        in_flight: the last one runs, the others wait for it.
        launched: the one whose last layer group went out in the previous iteration, not yet merged.
        changed: a request or a cohort came or went since overtaking was last considered.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.in_flight: list[Cohort] = []
        self.launched: Cohort | None = None
        self.changed = True

    def reqs(self) -> list[Req]:
        """Requests in a cohort that SGLang's own batches do not hold."""
        launched = [] if self.launched is None else [self.launched]
        return [req for cohort in (*self.in_flight, *launched) for req in cohort.reqs]

    def holders(self) -> list[Req]:
        """Requests with KV slots that may be in no batch of SGLang's: also a long prompt between two
        chunks, before which others go."""
        reqs, chunked = self.reqs(), self._scheduler.chunked_req
        return reqs if chunked is None or chunked in reqs else [*reqs, chunked]

    def outside(self, batch: ScheduleBatch) -> list[Req]:
        """The :meth:`holders` that are not in ``batch``."""
        inside = set(map(id, batch.reqs))
        return [req for req in self.holders() if id(req) not in inside]

    def tokens_left(self, besides: Req | None) -> int:
        """Prompt tokens that cohorts in flight have still to compute; half of a prompt's are left when
        half of the layers are. Those of ``besides`` are not counted."""
        left = 0.0
        for cohort in self.in_flight:
            share = 1 - cohort.next_layer / cohort.num_layers
            for req, tokens in zip(cohort.reqs, cohort.batch.extend_lens, strict=True):
                left += 0 if req is besides else tokens * share
        return round(left)

    def hold(self, req: Req | None) -> bool:
        """Whether ``req`` is in a cohort in flight."""
        return any(req in cohort.reqs for cohort in self.in_flight)

    def remove(self, cohort: Cohort) -> None:
        self.in_flight.remove(cohort)
        self.changed = True

    def _drop(self, cohort: Cohort) -> None:
        self.finish_loads(cohort)
        self.remove(cohort)
        cohort.state.drop()

    def finish_loads(self, cohort: Cohort) -> None:
        """Let the forwards from now on wait for what is loaded from the host cache for ``cohort``.

        Its own layer groups wait layer by layer. To be called where others may run first, whose
        cached prefix may be the same: the radix tree has it already.
        """
        s, loads = self._scheduler, cohort.batch.hicache_consumer_index
        if not s.enable_hierarchical_cache or loads < 0:
            return
        counter = s.tree_cache.cache_controller.layer_done_counter
        with s.forward_stream_ctx if s.enable_overlap else nullcontext():
            counter.events[loads].wait(counter.num_layers - 1)

    # --- abort ------------------------------------------------------------------------------------

    def mark_aborted(self, recv_req: AbortReq) -> None:
        """Note on requests that ``recv_req`` means that they are to end."""
        for req in self.reqs():
            if not req.finished() and (recv_req.abort_all or req.rid.startswith(recv_req.rid)):
                req.to_finish = FINISH_ABORT()

    def drop_aborted(self, running_batch: ScheduleBatch) -> None:
        """Stop cohorts that nobody waits for any more. One that somebody shares runs to its end."""
        s = self._scheduler
        for cohort in list(self.in_flight):
            if any(req.to_finish is None for req in cohort.reqs):
                continue
            self._drop(cohort)
            running_batch.batch_is_full = False
            s.layered_metrics.count("aborted_cohorts")
            for req in cohort.reqs:
                # Its chunk will have no result to count down.
                req.inflight_middle_chunks = 0
                if req is s.chunked_req:
                    # SGLang's own teardown of a chunked request follows in this very iteration.
                    s._pending_chunked_abort_req = req
                else:
                    self._finish_aborted(req)

    def _finish_aborted(self, req: Req) -> None:
        """End a request that is in no batch: release its KV, publish nothing, tell the client."""
        s = self._scheduler
        reason = req.to_finish
        prepare_abort(req, reason.message, reason.status_code)
        req.to_finish = None
        release_kv_cache(req, s.tree_cache, is_insert=False)
        s.ipc_channels.send_to_tokenizer.send_output(
            AbortReq(rid=req.rid, finished_reason=reason.to_json()), req
        )

    # --- restart ----------------------------------------------------------------------------------

    def restart_all(self, why: str) -> None:
        """Restart every cohort in flight."""
        for cohort in list(self.in_flight):
            self.restart(cohort, why)

    def restart(self, cohort: Cohort, why: str, running_batch: ScheduleBatch | None = None) -> None:
        """Release a half-computed cohort and put its requests back at the head of the queue.

        Args:
            cohort: one in flight.
            why: for the log.
            running_batch: given when the KV pool ran out: admission then becomes as careful as after
                SGLang's own retraction.
        """
        s = self._scheduler
        self._drop(cohort)
        s.layered_metrics.count("restarted_cohorts")
        logger.warning(
            "Restart a cohort of %d requests at layer %d of %d: %s",
            len(cohort.reqs),
            cohort.next_layer,
            cohort.num_layers,
            why,
        )
        self._queue_again(cohort.reqs, running_batch)

    def give_way_between_chunks(self, running_batch: ScheduleBatch) -> None:
        """Put a long prompt that is between two chunks back at the head of the queue: the KV pool ran
        out. Of its KV the radix cache keeps what nobody needs.

        NOTE: with overlap its last chunk's result may still come, and SGLang skips it for a request that
        waits. It must not be admitted again before: not in this iteration.
        """
        s = self._scheduler
        logger.warning(
            "A prompt of %d tokens gives way after %d: the KV cache pool is full",
            len(s.chunked_req.origin_input_ids),
            len(s.chunked_req.prefix_indices),
        )
        self._queue_again([s.chunked_req], running_batch)

    def next_chunk_has_room(self) -> bool:
        """Whether a long prompt between two chunks finds KV slots for the next one.

        While a chunk passes its layer groups, running requests decode and take slots, which SGLang's own
        chunks leave them no time for. It would allocate a chunk that does not fit, and end. With windows
        it lets the prompt wait.
        """
        s = self._scheduler
        req = s.chunked_req
        if req is None or self.hold(req) or s.is_hybrid_swa:
            return True
        tree = s.tree_cache
        evictable = tree.full_evictable_size() if tree.supports_mamba() else tree.evictable_size()
        left = len(req.full_untruncated_fill_ids) - len(req.prefix_indices)
        need = min(left, s.chunked_prefill_size) + s.page_size
        return need <= s.token_to_kv_pool_allocator.available_size() + evictable

    def _queue_again(self, reqs: list[Req], running_batch: ScheduleBatch | None) -> None:
        """Release requests that are in no batch of SGLang's and put them at the head of its queue.

        There they find room, however long it may be: they were admitted once. And they are looked at
        anew, even if SGLang has found its batch full with them in it.
        """
        s = self._scheduler
        limit, s.max_queued_requests = s.max_queued_requests, None
        if s.chunked_req in reqs:
            s.chunked_req = s._pending_chunked_abort_req = None
        waiting, s.waiting_queue = s.waiting_queue, []
        for left, req in zip(range(len(reqs), 0, -1), reqs, strict=True):
            if req.to_finish is not None:
                self._finish_aborted(req)
                continue
            self._release(req, left)
            s._add_request_to_queue(req, is_retracted=True)
        s.waiting_queue += waiting
        s.max_queued_requests = limit
        running = s.running_batch if running_batch is None else running_batch
        running.batch_is_full = False
        if running_batch is not None and running_batch.reqs:
            tracker = s.new_token_ratio_tracker
            tracker.current = max(
                tracker.current, tracker.estimate_new_token_ratio_after_retract(running_batch.reqs)
            )

    def _release(self, req: Req, left: int) -> None:
        """Release what ``req`` holds, the first of ``left`` requests; it is to be computed again.

        NOTE: the KV of a streaming session's turn is the session's, and SGLang would leave it all of it
        with the next turn in view, computed or not. As if the turn were aborted the session loses its KV
        slots; the turn goes on, from the beginning of the conversation.
        """
        s = self._scheduler
        session = req.session if req.session is not None and req.session.streaming else None
        if session is not None:
            req.finished_reason = FINISH_ABORT()
        release_req(
            req=req,
            remaing_req_count=left,
            server_args=s.server_args,
            req_to_token_pool=s.req_to_token_pool,
            token_to_kv_pool_allocator=s.token_to_kv_pool_allocator,
            tree_cache=s.tree_cache,
            hisparse_coordinator=None,
        )
        if session is not None:
            req.finished_reason, session._inflight = None, True

    def gather_for_retraction(self) -> None:
        """Leave SGLang one batch to retract: results in the queue processed, cohorts dissolved."""
        s = self._scheduler
        if s.enable_overlap and s.last_batch:
            s.process_batch_result(*s.result_queue.popleft())
        self.restart_all("generation is paused")
        launched, self.launched = self.launched, None
        last = s.last_batch
        s.last_batch = None
        extra: list[Req] = list(launched.reqs) if launched is not None else []
        if last is not None and last.forward_mode.is_extend():
            extra += last.reqs
        held = [*s.running_batch.reqs, s.chunked_req]
        s.running_batch.reqs = s.running_batch.reqs + [r for r in extra if r not in held]
