"""SGLang's scheduler with layered prefill.

An iteration with a cohort in it stays an ordinary decode batch to SGLang; the cohort rides beside it.
So the overlap loop, retraction and result processing are SGLang's own, and a prompt is SGLang's own
before it is admitted to a cohort and after its last layer group was launched.

Scheduler state added here, and who clears it:

* ``_cohorts``: the cohorts in flight; the last one runs, the others wait for it. One is added at
  admission; it leaves when its last layer group is handed out, when it is dropped (all aborted) or
  restarted (KV pool exhausted, pause).
* ``_launched``: a cohort whose last layer group went out in the previous iteration. Cleared by the
  next :meth:`get_next_batch_to_run`, which merges it as SGLang merges the last prefill batch.
* ``_step``: the cohort's part of the iteration just planned. Cleared by :meth:`run_batch`.
* ``_admission_due``: something changed since overtaking was last considered. Set by arrivals and by
  cohorts that come or go; cleared when the planner was asked.
* ``_unmeasured``: iterations launched whose time rank 0 has not told yet. Cleared by its ticks.
* On requests: ``layered_arrived`` (rank clock, once), ``layered_itl_target`` (once),
  ``layered_prompt`` (work and need; forgotten when the request is queued again).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from sglang.srt.disaggregation.utils import prepare_abort
from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import AbortReq, PauseGenerationReqInput
from sglang.srt.managers.schedule_batch import (
    FINISH_ABORT,
    NextBatchPlan,
    Req,
    ScheduleBatch,
    release_req,
)
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.mem_cache.common import release_kv_cache

from layered_sglang.hooks.admission import AdmissionGate
from layered_sglang.hooks.cohort import Cohort, CohortResult, LayerGroupStep
from layered_sglang.hooks.invariant_checker import (
    CohortAwareInvariantChecker,
    CohortAwarePoolStats,
)
from layered_sglang.hooks.iteration_log import IterationLog, LaunchedIteration
from layered_sglang.hooks.planner import describe_cost_model, make_planner
from layered_sglang.hooks.rank_clock import RankClock, Tick, TickingReceiver
from layered_sglang.hooks.server_args import layered_config
from layered_sglang.hooks.tp_worker import LayeredTpWorker
from layered_sglang.hooks.views import TargetError, decode_work, itl_target, strictest_target
from layered_sglang.scheduling import DecodeWork
from layered_sglang.telemetry.metrics import LayeredMetrics
from layered_sglang.telemetry.trace import IterationTrace

logger = logging.getLogger(__name__)


class LayeredScheduler(Scheduler):
    """Assigns layer groups to waiting prompts; see the module's text for its state."""

    # SGLang's, set in its init_* methods.
    chunked_req: Req | None
    last_batch: ScheduleBatch | None
    waiting_queue: list[Req]
    pool_stats_observer: Any
    request_receiver: Any
    invariant_checker: Any
    _pending_chunked_abort_req: Req | None

    def __init__(self, server_args: Any, *args: Any, **kwargs: Any) -> None:
        config = layered_config(server_args)
        self._cohorts: list[Cohort] = []
        self._launched: Cohort | None = None
        self._step: LayerGroupStep | None = None
        self._admission_due = True
        self._gate: AdmissionGate | None = None
        self._clock = RankClock()
        self._unmeasured: dict[int, LaunchedIteration] = {}
        self._default_target = None if config.itl_slo_ms is None else config.itl_slo_ms / 1000
        super().__init__(server_args, *args, **kwargs)
        runner = self.tp_worker.model_runner
        self._num_layers = runner.layer_groups.model.num_layers
        self._planner, self._planner_source = make_planner(
            config, runner, self._gpu_name(), self.enable_overlap
        )
        self._gate = AdmissionGate(self, self._planner)
        reports = self.metrics_reporter.current_scheduler_metrics_enabled
        self._metrics = LayeredMetrics(reports, self.metrics_collector.labels if reports else {})
        path = config.layered_trace_file if self.ps.tp_rank == 0 else None
        self._log = IterationLog(IterationTrace(path))

    # --- what SGLang's scheduler is made of -------------------------------------------------------

    def init_tp_model_worker(self) -> None:
        self.tp_worker = LayeredTpWorker(
            server_args=self.server_args,
            gpu_id=self.ps.gpu_id,
            ps=self.ps,
            nccl_port=self.nccl_port,
        )

    def init_pool_stats_observer(self) -> None:
        super().init_pool_stats_observer()
        self.pool_stats_observer = CohortAwarePoolStats.extend(
            self.pool_stats_observer, self._cohort_reqs
        )

    def init_request_receiver(self) -> None:
        super().init_request_receiver()
        self.request_receiver = TickingReceiver.extend(self.request_receiver, self._make_tick)

    def init_invariant_checker(self) -> None:
        super().init_invariant_checker()
        self.invariant_checker = CohortAwareInvariantChecker.extend(
            self.invariant_checker, self._cohort_reqs
        )

    def get_init_info(self) -> dict[str, Any]:
        runner = self.tp_worker.model_runner
        info = super().get_init_info()
        info["layered_sglang"] = {
            "device": str(runner.device),
            "gpu": self._gpu_name(),
            "layers": self._num_layers,
            "policy": self._planner.describe(),
            "costs": self._planner_source,
            "attention": runner.prefill_attention_backend_str,
            "overlap": self.enable_overlap,
            "experts": runner.describe_experts(),
            "graphs": runner.graphs_text,
            "cost_model": describe_cost_model(self._planner, runner, self._gpu_name()),
        }
        return info

    def _gpu_name(self) -> str | None:
        runner = self.tp_worker.model_runner
        return self.device_module.get_device_name() if runner.device == "cuda" else None

    # --- one clock for all ranks ------------------------------------------------------------------

    def _make_tick(self, received: bool) -> Tick | None:
        """On rank 0, for every turn of the loop in which there is something to plan."""
        busy = self.last_batch is not None or bool(self.waiting_queue) or bool(self._unmeasured)
        return self._clock.tick() if received or busy else None

    def process_input_requests(self, recv_reqs: list[Any]) -> None:
        requests, measured = self._clock.split(recv_reqs)
        for iteration, seconds in measured:
            launched = self._unmeasured.pop(iteration, None)
            if launched is not None and launched.kind in ("decode", "merged"):
                self._planner.observe(
                    launched.decode,
                    launched.cohort,
                    launched.layers,
                    seconds,
                    exact=not launched.at_border,
                )
        super().process_input_requests(requests)

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        before = len(self.waiting_queue)
        if not hasattr(req, "layered_arrived"):
            req.layered_arrived = self._clock.now
            try:
                req.layered_itl_target = itl_target(req)
            except TargetError as error:
                req.set_finish_with_abort(str(error))
        req.layered_prompt = None
        super()._add_request_to_queue(req, is_retracted)
        self._admission_due = True
        if self._gate is not None and len(self.waiting_queue) > before:
            self._gate.queued(req)

    # --- scheduling -------------------------------------------------------------------------------

    def get_next_batch_to_run(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None
    ) -> NextBatchPlan:
        self._drop_aborted_cohorts(running_batch)
        if self._launched is not None:
            # The true last batch decoded, of which SGLang needs nothing here; this one it merges.
            last_batch, self._launched = self._launched.batch, None
        plan = super().get_next_batch_to_run(running_batch, last_batch)
        batch = plan.batch_to_run
        if not self._cohorts or (batch is not None and batch.forward_mode.is_extend()):
            return plan
        return self._with_layer_group(plan, self._cohorts[-1])

    def _with_layer_group(self, plan: NextBatchPlan, cohort: Cohort) -> NextBatchPlan:
        """Add the cohort's next layer group to the iteration, which decodes or does nothing yet."""
        decode = plan.batch_to_run
        reqs = () if decode is None else decode.reqs
        view = cohort.view(decode_work(reqs), strictest_target(reqs, self._default_target))
        step = cohort.advance(self._planner.next_layer_group(view))
        if step.is_last:
            self._cohorts.remove(cohort)
            self._admission_due = True
        if decode is not None:
            self._step = step
            self._launched = cohort if step.is_last else None
            return plan
        # Nobody decodes: the cohort's own batch runs, and SGLang sees an ordinary prefill batch.
        assert step.is_last, "with nobody decoding, a policy runs all remaining layers"
        self._step = step if step.layers.start > 0 else None
        return NextBatchPlan(batch_to_run=cohort.batch, running_batch=plan.running_batch)

    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> NextBatchPlan:
        nothing = NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        if self._cohorts and not self._may_overtake(running_batch):
            return nothing
        # A long prompt between chunks is work to plan, too: its next chunk has to keep the target.
        work = bool(self.waiting_queue) or self.chunked_req is not None
        plans = self._planner.overtakes and work
        if not plans:
            plan = nothing if self._cohorts else super().get_new_batch_prefill(running_batch)
            alone = False
        else:
            assert self._gate is not None
            reqs = [running_batch.reqs[i] for i in _unfinished(running_batch)]
            target = strictest_target(reqs, self._default_target)
            view, waiting = self._gate.view(
                running_batch, self._cohorts, decode_work(reqs), target, self._clock.now
            )
            self._admission_due = False
            admission = self._planner.admit(view)
            if admission is None:
                return nothing
            with self._gate.offer(admission, waiting):
                plan = super().get_new_batch_prefill(running_batch)
            alone = admission.alone
            if admission.overtakes and plan.batch_to_run is not None:
                self._metrics.count("overtaking_cohorts")
                self._cohorts[0].delayed += admission.delay
        if plan.batch_to_run is None or alone or not self._admits_cohort(plan):
            return plan
        batch = plan.batch_to_run
        self._cohorts.append(Cohort(batch, self._num_layers, admitted_at=time.monotonic()))
        self._metrics.count("cohorts")
        self._metrics.count("layered_tokens", batch.extend_num_tokens)
        self._metrics.count("chunked_tokens", _chunk_tokens(batch))
        return NextBatchPlan(batch_to_run=None, running_batch=plan.running_batch)

    def _may_overtake(self, running_batch: ScheduleBatch) -> bool:
        """Whether to ask the planner for prompts that pass the cohort in flight. Not when nothing has
        changed since it declined, and not when nobody decodes: then the cohort runs to its end."""
        return (
            self._planner.overtakes
            and self._admission_due
            and len(self._cohorts) == 1
            and bool(self.waiting_queue)
            and bool(_unfinished(running_batch))
        )

    def get_num_allocatable_reqs(self, running_bs: int) -> int:
        """Cohorts in flight will run, so they count."""
        in_flight = sum(len(cohort.reqs) for cohort in self._cohorts)
        return super().get_num_allocatable_reqs(running_bs + in_flight)

    def _admits_cohort(self, plan: NextBatchPlan) -> bool:
        """Whether the prefill batch of ``plan`` should advance by layer groups beside decode.

        SGLang's own prefill serves when nobody decodes, when the prompts came as embeddings, and when
        admission left no KV for the next decode step: a cohort would have to restart at once.
        """
        running, batch = plan.running_batch, plan.batch_to_run
        decoding = _unfinished(running)
        return (
            bool(decoding)
            and not running.is_prefill_only
            and batch.input_embeds is None
            and batch.replace_embeds is None
            and running.check_decode_mem(selected_indices=decoding)
        )

    def update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch | None:
        while self._cohorts and not batch.check_decode_mem(selected_indices=_unfinished(batch)):
            # The youngest gives way first, as when SGLang retracts; its prompt is computed least.
            self._restart_cohort(self._cohorts[-1], batch)
        return super().update_running_batch(batch)

    def is_fully_idle(self, for_health_check: bool = False) -> bool:
        return (
            not self._cohorts and self._launched is None and super().is_fully_idle(for_health_check)
        )

    # --- forward and results ----------------------------------------------------------------------

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        step, self._step = self._step, None
        launched = self._log_launch(batch, step)
        result = self._run_with_layer_group(batch, step, *args, **kwargs)
        result.launched_iteration = launched
        return result

    def _run_with_layer_group(
        self, batch: ScheduleBatch, step: LayerGroupStep | None, *args: Any, **kwargs: Any
    ) -> Any:
        if step is None:
            return super().run_batch(batch, *args, **kwargs)
        self._metrics.count("layer_groups")
        self.tp_worker.cohort_inputs(step.cohort)
        batch.layer_group_step = step
        try:
            result = super().run_batch(batch, *args, **kwargs)
        finally:
            del batch.layer_group_step
        self._log_layer_group(batch, step)
        if batch is not step.cohort.batch and step.is_last:
            result.cohort_result = self._relay_first_tokens(
                step.cohort, batch, result.cohort_result
            )
        return result

    def _log_launch(self, batch: ScheduleBatch, step: LayerGroupStep | None) -> LaunchedIteration:
        kind = _iteration_kind(batch, step)
        self._metrics.count_iteration(kind)
        decode = decode_work(batch.reqs) if kind in ("decode", "merged") else DecodeWork()
        predicted, cohort, layers = None, None, 0.0
        if step is not None:
            cohort = step.cohort.work
            layers = self._planner.mean_layers(decode, cohort, step.layers)
        if self._log.trace.enabled and decode.requests:
            predicted = self._planner.predict(decode, cohort, layers)
        launched = self._log.launch(
            self.forward_ct + 1, kind, batch, step, decode, layers, predicted
        )
        self._unmeasured[launched.number] = launched
        return launched

    def _relay_first_tokens(
        self, cohort: Cohort, decode: ScheduleBatch, result: GenerationBatchResult
    ) -> CohortResult:
        """What :meth:`Scheduler.run_batch` does with a prefill batch's result after the forward."""
        batch = cohort.batch
        batch.forward_iter, batch.launch_ts = decode.forward_iter, cohort.admitted_at
        if self.enable_overlap:
            with self.forward_stream_ctx:
                self.future_map.publish(batch.req_pool_indices, batch.seq_lens + 1)
                self._relay_forward_payload(batch.req_pool_indices, result)
                result.copy_done = self.device_module.Event()
                self.copy_stream.wait_stream(self.forward_stream)
                with self.copy_stream_ctx:
                    result.copy_to_cpu(
                        return_logprob=batch.return_logprob,
                        return_hidden_states=batch.return_hidden_states,
                    )
        else:
            self._relay_forward_payload(batch.req_pool_indices, result)
        batch.input_ids = None  # from here on its tokens come from the relay
        if batch.return_logprob or batch.return_hidden_states:
            result.extend_input_len_per_req = [req.extend_range.length for req in batch.reqs]
        if batch.return_logprob:
            result.extend_logprob_start_len_per_req = batch.extend_logprob_start_lens
        return CohortResult(batch.copy(), result)

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        super().process_batch_result(batch, result)
        launched = getattr(result, "launched_iteration", None)
        if launched is not None:
            seconds = self._log.finish(launched)
            if self.ps.tp_rank == 0:
                self._clock.measured(launched.number, seconds)
        cohort: CohortResult | None = getattr(result, "cohort_result", None)
        if cohort is not None:
            super().process_batch_result(cohort.batch, cohort.result)
            _forget_unsent_logprobs(cohort.batch.reqs)

    def _log_layer_group(self, batch: ScheduleBatch, step: LayerGroupStep) -> None:
        if not self.metrics_reporter.is_stats_logging_rank:
            return
        cohort = step.cohort
        logger.info(
            "Layer group %s of %d, #cohort-req: %d, #cohort-token: %d, #running-req: %d",
            step.layers,
            cohort.num_layers,
            len(cohort.reqs),
            cohort.tokens,
            0 if batch is cohort.batch else batch.batch_size(),
        )

    # --- prompts longer than a cohort -------------------------------------------------------------

    def stash_chunked_request(self, req: Req) -> None:
        """Publish a chunk's KV in the radix cache, once all layers of it have been launched."""
        if any(req in cohort.reqs for cohort in self._cohorts):
            return
        super().stash_chunked_request(req)

    def process_pending_chunked_abort(self) -> None:
        """Tear a chunked request down, once the cohort it shares with others is through."""
        if any(self._pending_chunked_abort_req in cohort.reqs for cohort in self._cohorts):
            return
        super().process_pending_chunked_abort()

    # --- abort, restart, pause --------------------------------------------------------------------

    def abort_request(self, recv_req: AbortReq) -> None:
        super().abort_request(recv_req)
        for req in self._cohort_reqs():
            if not req.finished() and (recv_req.abort_all or req.rid.startswith(recv_req.rid)):
                req.to_finish = FINISH_ABORT()

    def _abort_on_running_timeout(self, running_batch: ScheduleBatch) -> None:
        super()._abort_on_running_timeout(running_batch)
        if envs.SGLANG_REQ_RUNNING_TIMEOUT.get() > 0:
            for cohort in self._cohorts:
                super()._abort_on_running_timeout(cohort.batch)

    def _cohort_reqs(self) -> list[Req]:
        """Requests in a cohort that SGLang's own batches do not hold."""
        launched = [] if self._launched is None else [self._launched]
        return [req for cohort in (*self._cohorts, *launched) for req in cohort.reqs]

    def _drop_aborted_cohorts(self, running_batch: ScheduleBatch) -> None:
        """Stop cohorts that nobody waits for any more. One that somebody shares runs to its end."""
        for cohort in list(self._cohorts):
            if any(req.to_finish is None for req in cohort.reqs):
                continue
            self._forget_cohort(cohort)
            running_batch.batch_is_full = False
            self._metrics.count("aborted_cohorts")
            for req in cohort.reqs:
                # Its chunk will have no result to count down.
                req.inflight_middle_chunks = 0
                if req is self.chunked_req:
                    # SGLang's own teardown of a chunked request follows in this very iteration.
                    self._pending_chunked_abort_req = req
                else:
                    self._finish_aborted(req)

    def _forget_cohort(self, cohort: Cohort) -> None:
        self._cohorts.remove(cohort)
        cohort.state.drop()
        self._admission_due = True

    def _finish_aborted(self, req: Req) -> None:
        """End a request that is in no batch: release its KV, publish nothing, tell the client."""
        reason = req.to_finish
        prepare_abort(req, reason.message, reason.status_code)
        req.to_finish = None
        release_kv_cache(req, self.tree_cache, is_insert=False)
        self.ipc_channels.send_to_tokenizer.send_output(
            AbortReq(rid=req.rid, finished_reason=reason.to_json()), req
        )

    def _restart_cohort(self, cohort: Cohort, running_batch: ScheduleBatch | None = None) -> None:
        """Release a half-computed cohort and put its requests back at the head of the queue.

        Args:
            cohort: one in flight.
            running_batch: given when the KV pool ran out: admission then becomes as careful as after
                SGLang's own retraction.
        """
        self._forget_cohort(cohort)
        self._metrics.count("restarted_cohorts")
        logger.warning(
            "Restart a cohort of %d requests at layer %d of %d: %s",
            len(cohort.reqs),
            cohort.next_layer,
            cohort.num_layers,
            "generation is paused" if running_batch is None else "the KV cache pool is full",
        )
        if self.chunked_req in cohort.reqs:
            self.chunked_req = self._pending_chunked_abort_req = None
        waiting, self.waiting_queue = self.waiting_queue, []
        for left, req in zip(range(len(cohort.reqs), 0, -1), cohort.reqs, strict=True):
            if req.to_finish is not None:
                self._finish_aborted(req)
                continue
            release_req(
                req=req,
                remaing_req_count=left,
                server_args=self.server_args,
                req_to_token_pool=self.req_to_token_pool,
                token_to_kv_pool_allocator=self.token_to_kv_pool_allocator,
                tree_cache=self.tree_cache,
                hisparse_coordinator=None,
            )
            self._add_request_to_queue(req, is_retracted=True)
        self.waiting_queue += waiting
        if running_batch is not None:
            tracker = self.new_token_ratio_tracker
            tracker.current = max(
                tracker.current, tracker.estimate_new_token_ratio_after_retract(running_batch.reqs)
            )

    def pause_generation(self, recv_req: PauseGenerationReqInput) -> Any:
        """Pause; mode ``retract`` takes every request back to the queue, cohorts included."""
        if recv_req.mode == "retract":
            self._gather_for_retraction()
        return super().pause_generation(recv_req)

    def _gather_for_retraction(self) -> None:
        """Leave SGLang one batch to retract: results in the queue processed, cohorts dissolved."""
        if self.enable_overlap and self.last_batch:
            self.process_batch_result(*self.result_queue.popleft())
        for cohort in list(self._cohorts):
            self._restart_cohort(cohort)
        launched, self._launched = self._launched, None
        last = self.last_batch
        self.last_batch = None
        extra: list[Req] = list(launched.reqs) if launched is not None else []
        if last is not None and last.forward_mode.is_extend():
            extra += last.reqs
        held = [*self.running_batch.reqs, self.chunked_req]
        self.running_batch.reqs = self.running_batch.reqs + [r for r in extra if r not in held]


def _unfinished(batch: ScheduleBatch) -> list[int]:
    return [i for i, req in enumerate(batch.reqs) if not req.finished()]


def _forget_unsent_logprobs(reqs: list[Req]) -> None:
    """Let requests retracted before their first token came send its logprob when it does come.

    SGLang's streamer reports on them while they have no token, and counts one logprob as sent.
    """
    for req in reqs:
        if req.is_retracted and not req.output_ids:
            req.send_output_token_logprobs_offset = 0


def _chunk_tokens(batch: ScheduleBatch) -> int:
    """Tokens of ``batch`` that belong to a prompt cut into chunks."""
    return sum(
        length
        for req, length in zip(batch.reqs, batch.extend_lens, strict=True)
        if req is batch.chunked_req or req.extend_batch_idx > 1
    )


def _iteration_kind(batch: ScheduleBatch, step: LayerGroupStep | None) -> str:
    if step is None:
        return "prefill" if batch.forward_mode.is_extend() else "decode"
    return "cohort" if batch is step.cohort.batch else "merged"
