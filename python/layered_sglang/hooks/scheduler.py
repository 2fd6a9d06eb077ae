"""SGLang's scheduler with layered prefill.

An iteration with a cohort in it stays an ordinary decode batch to SGLang; the cohort rides beside it.
So the overlap loop, retraction and result processing are SGLang's own, and a prompt is SGLang's own
before it is admitted to a cohort and after its last layer group was launched.

Scheduler state added here, and who clears it:

* ``_cohorts``: the cohorts that no batch of SGLang's holds, and how they end early. One is added at
  admission and launched when its last layer group is handed out; the next
  :meth:`get_next_batch_to_run` merges it as SGLang merges the last prefill batch.
* ``_step``: the cohort's part of the iteration just planned. Cleared by :meth:`run_batch`.
* ``_unmeasured``: iterations launched whose time rank 0 has not told yet. Cleared by its ticks.
* On requests: ``layered_arrived`` (rank clock, once), ``layered_itl_target`` (once),
  ``layered_prompt`` (work and need; forgotten when the request is queued again).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from sglang.srt.managers.io_struct import AttachHiCacheStorageReqOutput
from sglang.srt.managers.schedule_batch import NextBatchPlan, Req, ScheduleBatch

from layered_sglang.hooks.admission import AdmissionGate
from layered_sglang.hooks.cohort import Cohort, CohortResult, LayerGroupStep
from layered_sglang.hooks.cohorts_in_flight import CohortsInFlight
from layered_sglang.hooks.first_tokens import (
    forget_unsent_logprobs,
    leave_out_retracted,
    relay_first_tokens,
)
from layered_sglang.hooks.interruptions import InterruptibleScheduler, unfinished
from layered_sglang.hooks.invariant_checker import (
    CohortAwareInvariantChecker,
    CohortAwarePoolStats,
)
from layered_sglang.hooks.iteration_log import (
    IterationLog,
    LaunchedIteration,
    iteration_kind,
    log_layer_group,
)
from layered_sglang.hooks.planner import describe_cost_model, make_planner, planner_with
from layered_sglang.hooks.planning import STATE, unpack, values
from layered_sglang.hooks.rank_clock import RankClock, Tick, TickingReceiver
from layered_sglang.hooks.refusals import HOST_CACHE_STORE
from layered_sglang.hooks.server_args import layered_config
from layered_sglang.hooks.tp_worker import LayeredTpWorker
from layered_sglang.hooks.views import (
    TargetError,
    batch_decode_work,
    decode_work,
    holds_images,
    itl_target,
    strictest_target,
)
from layered_sglang.moe.library import native_status
from layered_sglang.scheduling import Admission, DecodeWork, LayerGroup, Lessons
from layered_sglang.telemetry.banner import banner
from layered_sglang.telemetry.metrics import LayeredMetrics
from layered_sglang.telemetry.trace import IterationTrace, trace_file

logger = logging.getLogger(__name__)


class LayeredScheduler(InterruptibleScheduler):
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
        self._config = config = layered_config(server_args)
        self._cohorts = CohortsInFlight(self)
        self._step: LayerGroupStep | None = None
        self._gate: AdmissionGate | None = None
        self._clock = RankClock()
        self._unmeasured: dict[int, LaunchedIteration] = {}
        self._default_target = None if config.itl_slo_ms is None else config.itl_slo_ms / 1000
        self._speculates = server_args.speculative_algorithm is not None
        super().__init__(server_args, *args, **kwargs)
        runner = self.tp_worker.model_runner
        self._num_layers = runner.layer_groups.model.num_layers
        self._planner, self._planner_source = make_planner(
            config, runner, self._gpu_name(), self.enable_overlap
        )
        self._gpu = runner.device == "cuda"
        self._lessons = Lessons(self._planner.estimator)
        self._gate = AdmissionGate(self, self._planner)
        reports = self.metrics_reporter.current_scheduler_metrics_enabled
        self.layered_metrics = LayeredMetrics(
            reports, self.metrics_collector.labels if reports else {}
        )
        path = trace_file(config.layered_trace_file, self.ps.tp_rank, self.ps.dp_rank)
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
            self.pool_stats_observer, self._cohorts.holders
        )

    def init_request_receiver(self) -> None:
        super().init_request_receiver()
        self.request_receiver = TickingReceiver.extend(self.request_receiver, self._make_tick)

    def init_invariant_checker(self) -> None:
        super().init_invariant_checker()
        self.invariant_checker = CohortAwareInvariantChecker.extend(
            self.invariant_checker, self._cohorts.holders
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
            "execution": "before decode" if self._speculates else self._config.layered_execution,
            "attention": runner.prefill_attention_backend_str,
            "overlap": self.enable_overlap,
            "experts": runner.describe_experts(),
            "graphs": runner.graphs_text,
            "memory": runner.describe_memory(),
            "cost_model": describe_cost_model(self._planner, runner, self._gpu_name()),
        }
        if self.server_args.dp_size > 1 and self.ps.tp_rank == 0:
            logger.info(banner(layered_config(self.server_args), info, native_status().describe()))
        return info

    def get_internal_state(self, recv_req: Any) -> Any:
        answer = super().get_internal_state(recv_req)
        answer.internal_state[STATE] = values(self._config)
        return answer

    def set_internal_state(self, recv_req: Any) -> Any:
        """SGLang's own values, and how prompts are planned from the next iteration on."""
        config = unpack(recv_req.server_args, self._config, self._num_layers)
        if config is not None:
            self._config = config
            self._default_target = None if config.itl_slo_ms is None else config.itl_slo_ms / 1000
            # What the estimator has learned stays. A cohort in flight goes on by the new policy.
            self._planner = planner_with(self._planner.estimator, config)
            self._gate = AdmissionGate(self, self._planner)
            self._cohorts.changed = True
        return super().set_internal_state(recv_req)

    def attach_hicache_storage_wrapped(self, recv_req: Any) -> AttachHiCacheStorageReqOutput:
        """What the start refuses is refused later, too."""
        return AttachHiCacheStorageReqOutput(success=False, message=HOST_CACHE_STORE.line())

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
        for number, seconds, launch in measured:
            launched = self._unmeasured.pop(number, None)
            if launched is None or launched.kind not in ("decode", "merged"):
                self._lessons.forget()
                continue
            if launch > 0:
                self._planner.estimator.observe_launch(launched.work, launch)
            following = self._unmeasured.get(number + 1)
            long_launch = following is not None and following.launches_long
            self._lessons.measured(launched.work, seconds, long_launch)
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
        self._cohorts.changed = True
        if self._gate is not None and len(self.waiting_queue) > before:
            self._gate.queued(req)

    # --- scheduling -------------------------------------------------------------------------------

    def get_next_batch_to_run(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None
    ) -> NextBatchPlan:
        self._cohorts.drop_aborted(running_batch)
        if self._cohorts.launched is not None:
            # The true last batch decoded, of which SGLang needs nothing here; this one it merges.
            last_batch, self._cohorts.launched = self._cohorts.launched.batch, None
        plan = super().get_next_batch_to_run(running_batch, last_batch)
        batch = plan.batch_to_run
        if not self._cohorts.in_flight or (batch is not None and batch.forward_mode.is_extend()):
            return plan
        return self._with_layer_group(plan, self._cohorts.in_flight[-1])

    def _with_layer_group(self, plan: NextBatchPlan, cohort: Cohort) -> NextBatchPlan:
        """Add the cohort's next layer group to the iteration, which decodes or does nothing yet."""
        decode = plan.batch_to_run
        reqs = () if decode is None else decode.reqs
        rows = DecodeWork() if decode is None else batch_decode_work(decode)
        layers = self._next_layer_group(cohort, rows, reqs)
        if decode is None:
            # Nobody decodes: SGLang sees an ordinary prefill batch.
            assert layers.end == self._num_layers, "with nobody decoding, all remaining layers run"
            return self._as_prefill(cohort, layers, plan.running_batch)
        if self._speculates and layers.end == self._num_layers:
            # As planned before some of the rows were retracted, it was not the last one.
            layers = LayerGroup(layers.start, self._num_layers - 1)
            if layers.start == layers.end:
                return plan
        self._step = step = cohort.advance(layers, rows)
        if step.is_last:
            self._cohorts.remove(cohort)
            self._cohorts.launched = cohort
        return plan

    def _next_layer_group(
        self, cohort: Cohort, rows: DecodeWork, reqs: Iterable[Req]
    ) -> LayerGroup:
        view = cohort.view(rows, strictest_target(reqs, self._default_target))
        return self._planner.next_layer_group(view)

    def _as_prefill(
        self, cohort: Cohort, layers: LayerGroup, running_batch: ScheduleBatch
    ) -> NextBatchPlan:
        """The cohort's own batch runs its last ``layers``; to SGLang it is any prefill batch."""
        step = cohort.advance(layers, DecodeWork())
        self._cohorts.remove(cohort)
        self._step = step if not step.is_first else None
        return NextBatchPlan(batch_to_run=cohort.batch, running_batch=running_batch)

    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> NextBatchPlan:
        plan = self._admit_cohort(running_batch)
        if plan.batch_to_run is not None or not (self._speculates and self._cohorts.in_flight):
            return plan
        # The draft model reads the prompt when the model has: SGLang's worker sees to that for prefill
        # batches, so a cohort ends as one.
        cohort = self._cohorts.in_flight[-1]
        reqs = [running_batch.reqs[i] for i in unfinished(running_batch)]
        layers = self._next_layer_group(cohort, decode_work(reqs), reqs)
        if layers.end < self._num_layers:
            return plan
        return self._as_prefill(cohort, layers, running_batch)

    def _admit_cohort(self, running_batch: ScheduleBatch) -> NextBatchPlan:
        """Admit prompts as a cohort, which no batch holds, or as SGLang's own prefill batch."""
        nothing = NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        if self._cohorts.in_flight and not self._may_overtake(running_batch):
            self._free_what_the_host_cache_has()
            return nothing
        if not self._cohorts.next_chunk_has_room():
            self._cohorts.give_way_between_chunks(running_batch)
            return nothing
        # A long prompt between chunks is work to plan, too: its next chunk has to keep the target.
        work = bool(self.waiting_queue) or self.chunked_req is not None
        if not (self._planner.overtakes and work):
            plan, alone = self._admit(running_batch), False
        else:
            assert self._gate is not None
            reqs = [running_batch.reqs[i] for i in unfinished(running_batch)]
            target = strictest_target(reqs, self._default_target)
            view, waiting = self._gate.view(
                running_batch, self._cohorts.in_flight, decode_work(reqs), target, self._clock.now
            )
            self._cohorts.changed = False
            admission = self._planner.admit(view)
            if admission is None:
                self._free_what_the_host_cache_has()
                return nothing
            for cohort in self._cohorts.in_flight:
                self._cohorts.finish_loads(cohort)
            with self._gate.offer(admission, waiting):
                plan = self._admit(running_batch)
            if admission.overtakes and plan.batch_to_run is not None:
                self.layered_metrics.count("overtaking_cohorts")
                for overtaken in self._cohorts.in_flight[:1]:
                    overtaken.delayed += admission.delay
            elif admission.overtakes and not self._cohorts.in_flight:
                # Who would go before a long prompt's next chunk finds no KV slots, which the long one
                # may be holding: it goes on.
                admission = Admission((), admission.tokens, continues=True)
                with self._gate.offer(admission, waiting):
                    plan = self._admit(running_batch)
            alone = admission.alone
        if plan.batch_to_run is None or alone or not self._admits_cohort(plan):
            return plan
        cohort = Cohort(plan.batch_to_run, self._num_layers, admitted_at=time.monotonic())
        self._cohorts.in_flight.append(cohort)
        self.layered_metrics.count("cohorts")
        self.layered_metrics.count("layered_tokens", cohort.tokens)
        self.layered_metrics.count("chunked_tokens", cohort.chunk_tokens)
        return NextBatchPlan(batch_to_run=None, running_batch=plan.running_batch)

    def _admit(self, running_batch: ScheduleBatch) -> NextBatchPlan:
        """SGLang's own admission: of prompts that may be layered, or of such that hold images."""
        assert self._gate is not None
        with self._gate.one_kind(running_batch):
            return super().get_new_batch_prefill(running_batch)

    def _free_what_the_host_cache_has(self) -> None:
        """What SGLang's admission begins with: unlock what was written to the host or loaded."""
        if self.enable_hierarchical_cache:
            self.tree_cache.check_hicache_events()

    def _may_overtake(self, running_batch: ScheduleBatch) -> bool:
        """Whether to ask the planner for prompts that pass the cohort in flight. Not when nothing has
        changed since it declined, and not when nobody decodes: then the cohort runs to its end."""
        return (
            self._planner.overtakes
            and self._cohorts.changed
            and len(self._cohorts.in_flight) == 1
            and bool(self.waiting_queue)
            and bool(unfinished(running_batch))
        )

    def get_num_allocatable_reqs(self, running_bs: int) -> int:
        """Cohorts in flight will run, so they count."""
        in_flight = sum(len(cohort.reqs) for cohort in self._cohorts.in_flight)
        return super().get_num_allocatable_reqs(running_bs + in_flight)

    def _can_schedule_lora_req(self, req: Req, running_loras: set[str | None]) -> bool:
        """Whether there is room for the adapter of ``req`` beside those of others, cohorts included."""
        cohorts = {other.lora_id for other in self._cohorts.holders()}
        return super()._can_schedule_lora_req(req, running_loras | cohorts)

    def _admits_cohort(self, plan: NextBatchPlan) -> bool:
        """Whether the prefill batch of ``plan`` should advance by layer groups beside decode.

        SGLang's own prefill serves when nobody decodes, when prompts came as embeddings or hold images,
        and when admission left no KV for the next decode step: a cohort would have to restart at once.
        """
        running, batch = plan.running_batch, plan.batch_to_run
        decoding = unfinished(running)
        return (
            bool(decoding)
            and not running.is_prefill_only
            and batch.input_embeds is None
            and batch.replace_embeds is None
            and not any(map(holds_images, batch.reqs))
            and running.check_decode_mem(selected_indices=decoding)
        )

    def is_fully_idle(self, for_health_check: bool = False) -> bool:
        return not self._cohorts.reqs() and super().is_fully_idle(for_health_check)

    # --- forward and results ----------------------------------------------------------------------

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        step, self._step = self._step, None
        launched = self._log_launch(batch, step)
        result = self._run_with_layer_group(batch, step, *args, **kwargs)
        self._log.launched(launched)
        result.launched_iteration = launched
        return result

    def _run_with_layer_group(
        self, batch: ScheduleBatch, step: LayerGroupStep | None, *args: Any, **kwargs: Any
    ) -> Any:
        if step is None:
            return super().run_batch(batch, *args, **kwargs)
        self.layered_metrics.count("layer_groups")
        if not self.enable_lora:
            # Adapters are loaded on the forward stream, or decode might lose its own.
            self.tp_worker.cohort_inputs(step.cohort)
        if self._speculates and batch is not step.cohort.batch:
            self._launch_apart(step)
            result = super().run_batch(batch, *args, **kwargs)
            self._keep_alive(step.cohort)
        else:
            batch.layer_group_step = step
            try:
                result = super().run_batch(batch, *args, **kwargs)
            finally:
                del batch.layer_group_step
        if self.metrics_reporter.is_stats_logging_rank:
            log_layer_group(batch, step)
        if batch is not step.cohort.batch and step.is_last:
            result.cohort_result = relay_first_tokens(
                self, step.cohort, batch, result.cohort_result
            )
        return result

    def _launch_apart(self, step: LayerGroupStep) -> None:
        """Launch a layer group right before decode, which is several forwards of SGLang's: a draft's,
        the model's that verifies it, the draft's again."""
        if not self.enable_overlap:
            self.tp_worker.run_layer_group(step)
            return
        with self.forward_stream_ctx:
            self.forward_stream.wait_stream(self.schedule_stream)
            self.tp_worker.run_layer_group(step)

    def _keep_alive(self, cohort: Cohort) -> None:
        """Hold what launched kernels read of ``cohort``, made on the schedule stream, as long as SGLang
        holds the batch beside it."""
        if self.enable_overlap:
            self.batch_record_buf[self.batch_record_ct] += cohort.state.made_for_launch()

    def _log_launch(self, batch: ScheduleBatch, step: LayerGroupStep | None) -> LaunchedIteration:
        kind = iteration_kind(batch, step)
        self.layered_metrics.count_iteration(kind)
        predicted, cohort, layers, first, last = None, None, 0.0, False, False
        if step is not None:
            decode, cohort = step.decode, step.cohort.work
            first, last = step.is_first, step.is_last
            layers = self._planner.mean_layers(decode, cohort, step.layers)
        else:
            decode = batch_decode_work(batch) if kind == "decode" else DecodeWork()
        if self._log.trace.enabled and decode.requests:
            predicted = self._planner.predict(decode, cohort, layers, first, last)
        launched = self._log.launch(
            self.forward_ct + 1, kind, batch, step, decode, layers, predicted
        )
        self._unmeasured[launched.number] = launched
        return launched

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        self._process_result(batch, result)
        launched = getattr(result, "launched_iteration", None)
        if launched is not None:
            seconds = self._log.finish(launched)
            if self.ps.tp_rank == 0:
                # On a CPU a launch is the whole computation.
                launch = launched.launch if self._gpu else 0.0
                self._clock.measured(launched.number, seconds, launch)
        cohort: CohortResult | None = getattr(result, "cohort_result", None)
        if cohort is not None:
            self._process_result(cohort.batch, cohort.result)

    def _process_result(self, batch: ScheduleBatch, result: Any) -> None:
        """SGLang's, and what it leaves wrong of requests retracted before their first token came."""
        if not batch.forward_mode.is_extend():
            return super().process_batch_result(batch, result)
        leave_out_retracted(batch, result)
        super().process_batch_result(batch, result)
        forget_unsent_logprobs(batch.reqs)
