"""SGLang's scheduler with layered prefill.

An iteration with a cohort in it stays an ordinary decode batch to SGLang; the cohort rides beside it.
So the overlap loop, retraction and result processing are SGLang's own, and a prompt is SGLang's own
before it is admitted to a cohort and after its last layer group was launched.

Scheduler state added here, and who clears it:

* ``_cohorts`` (:class:`CohortsInFlight`): the cohorts that no batch of SGLang's holds, and how they end
  early. One is added at admission and launched when its last layer group is handed out; the next
  :meth:`get_next_batch_to_run` merges it as SGLang merges the last prefill batch.
* ``_admission`` (:class:`CohortAdmission`): brings prompts there; keeps nothing from one iteration to the
  next but the answer that nobody may overtake, in ``_cohorts.changed``.
* ``_steps`` (:class:`LayerGroupSteps`; :class:`StepsBeforeDecode` where a draft model speculates): the
  cohort's part of the iteration just planned. :meth:`run_batch` takes it.
* ``_measurements`` (:class:`Measurements`): iterations launched whose time rank 0 has not told yet. Its
  ticks clear them.
* ``_planning`` (:class:`PlannerInForce`): the policy, which ``/layered_prefill`` may change between two
  iterations, and the estimator, which learns.
* On requests: ``layered_arrived`` (rank clock, once), ``layered_itl_target`` (once),
  ``layered_prompt`` (work and need; forgotten when the request is queued again).
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from sglang.srt.managers.io_struct import AttachHiCacheStorageReqOutput
from sglang.srt.managers.schedule_batch import NextBatchPlan, Req, ScheduleBatch

from layered_sglang.hooks.cohort import CohortResult, LayerGroupStep
from layered_sglang.hooks.cohort_admission import CohortAdmission
from layered_sglang.hooks.cohorts_in_flight import CohortsInFlight
from layered_sglang.hooks.first_tokens import forget_unsent_logprobs, leave_out_retracted
from layered_sglang.hooks.interruptions import InterruptibleScheduler
from layered_sglang.hooks.invariant_checker import (
    CohortAwareInvariantChecker,
    CohortAwarePoolStats,
)
from layered_sglang.hooks.layer_group_steps import LayerGroupSteps
from layered_sglang.hooks.load_reports import CohortAwareLoads, CohortAwareMetricsReporter
from layered_sglang.hooks.measurements import Measurements
from layered_sglang.hooks.planner import PlannerInForce, describe_cost_model
from layered_sglang.hooks.planning import STATE, unpack, values
from layered_sglang.hooks.rank_clock import RankClock, Tick, TickingReceiver
from layered_sglang.hooks.refusals import HOST_CACHE_STORE
from layered_sglang.hooks.server_args import layered_config
from layered_sglang.hooks.steps_before_decode import StepsBeforeDecode
from layered_sglang.hooks.tp_worker import LayeredTpWorker
from layered_sglang.hooks.views import TargetError, itl_target
from layered_sglang.moe.library import native_status
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
    load_inquirer: Any
    metrics_reporter: Any
    _pending_chunked_abort_req: Req | None

    def __init__(self, server_args: Any, *args: Any, **kwargs: Any) -> None:
        config = layered_config(server_args)
        self._cohorts = CohortsInFlight(self)
        self._clock = RankClock()
        super().__init__(server_args, *args, **kwargs)
        runner = self.tp_worker.model_runner
        self._num_layers = runner.layer_groups.model.num_layers
        self._planning = PlannerInForce(config, runner, self._gpu_name(), self.enable_overlap)
        self._admission = CohortAdmission(
            self, self._cohorts, self._planning, self._clock, self._num_layers
        )
        speculates = server_args.speculative_algorithm is not None
        steps = StepsBeforeDecode if speculates else LayerGroupSteps
        self._steps = steps(self, self._cohorts, self._planning)
        reports = self.metrics_reporter.current_scheduler_metrics_enabled
        self.layered_metrics = LayeredMetrics(
            reports, self.metrics_collector.labels if reports else {}
        )
        path = trace_file(config.layered_trace_file, self.ps.tp_rank, self.ps.dp_rank)
        self._measurements = Measurements(
            self._planning,
            self._clock,
            self.layered_metrics,
            IterationTrace(path),
            rank0=self.ps.tp_rank == 0,
            on_gpu=runner.device == "cuda",
        )

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

    def init_metrics_reporter(self, tp_rank: int, pp_rank: int, dp_rank: int | None) -> None:
        self.metrics_reporter = CohortAwareMetricsReporter(
            scheduler=self,
            tp_rank=tp_rank,
            pp_rank=pp_rank,
            dp_rank=dp_rank,
            metrics_collector_context=self.metrics_collector_context,
            metrics_collector=self.metrics_collector,
        )
        self.metrics_reporter.cohorts = self._cohorts

    def init_load_inquirer(self) -> None:
        super().init_load_inquirer()
        self.load_inquirer = CohortAwareLoads.extend(self.load_inquirer, self._cohorts)

    def get_init_info(self) -> dict[str, Any]:
        runner = self.tp_worker.model_runner
        info = super().get_init_info()
        info["layered_sglang"] = {
            "device": str(runner.device),
            "gpu": self._gpu_name(),
            "layers": self._num_layers,
            "policy": self._planning.planner.describe(),
            "costs": self._planning.source,
            "execution": self._steps.describe(),
            "attention": runner.prefill_attention_backend_str,
            "overlap": self.enable_overlap,
            "experts": runner.describe_experts(),
            "graphs": runner.graphs_text,
            "memory": runner.describe_memory(),
            "cost_model": describe_cost_model(self._planning.estimator, runner, self._gpu_name()),
        }
        if self.server_args.dp_size > 1 and self.ps.tp_rank == 0:
            logger.info(banner(layered_config(self.server_args), info, native_status().describe()))
        return info

    def get_internal_state(self, recv_req: Any) -> Any:
        answer = super().get_internal_state(recv_req)
        answer.internal_state[STATE] = values(self._planning.config)
        return answer

    def set_internal_state(self, recv_req: Any) -> Any:
        """SGLang's own values, and how prompts are planned from the next iteration on."""
        config = unpack(recv_req.server_args, self._planning.config, self._num_layers)
        if config is not None:
            self._planning.change(config)
            self._admission.policy_changed()
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
        busy = self.last_batch is not None or bool(self.waiting_queue) or self._measurements.pending
        return self._clock.tick() if received or busy else None

    def process_input_requests(self, recv_reqs: list[Any]) -> None:
        requests, measured = self._clock.split(recv_reqs)
        self._measurements.learn(measured)
        super().process_input_requests(requests)

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        if not hasattr(req, "layered_arrived"):
            req.layered_arrived = self._clock.now
            try:
                req.layered_itl_target = itl_target(req)
            except TargetError as error:
                req.set_finish_with_abort(str(error))
        req.layered_prompt = None
        super()._add_request_to_queue(req, is_retracted)
        self._cohorts.changed = True
        # The queue may have as many as before: a full one gives up one of lower priority.
        if self.waiting_queue and self.waiting_queue[-1] is req:
            self._admission.gate.queued(req)

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
        return self._steps.beside(plan)

    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> NextBatchPlan:
        plan = self._admission.admit(running_batch, super().get_new_batch_prefill)
        if plan.batch_to_run is not None:
            return plan
        return self._steps.end_before_decode(running_batch) or plan

    def get_num_allocatable_reqs(self, running_bs: int) -> int:
        """Cohorts in flight will run, so they count."""
        in_flight = sum(len(cohort.reqs) for cohort in self._cohorts.in_flight)
        return super().get_num_allocatable_reqs(running_bs + in_flight)

    def _can_schedule_lora_req(self, req: Req, running_loras: set[str | None]) -> bool:
        """Whether there is room for the adapter of ``req`` beside those of others, cohorts included."""
        cohorts = {other.lora_id for other in self._cohorts.holders()}
        return super()._can_schedule_lora_req(req, running_loras | cohorts)

    def is_fully_idle(self, for_health_check: bool = False) -> bool:
        return not self._cohorts.reqs() and super().is_fully_idle(for_health_check)

    # --- forward and results ----------------------------------------------------------------------

    @property
    def planned_step(self) -> LayerGroupStep | None:
        """The cohort's part of what :meth:`run_batch` launches next, for plugins that look on."""
        return self._steps.planned

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        step = self._steps.take()
        launched = self._measurements.launch(self.forward_ct + 1, batch, step)
        sglangs = partial(super().run_batch, batch, *args, **kwargs)
        result = sglangs() if step is None else self._steps.launch(step, batch, sglangs)
        self._measurements.launched(launched)
        result.launched_iteration = launched
        return result

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        self._process_result(batch, result)
        launched = getattr(result, "launched_iteration", None)
        if launched is not None:
            self._measurements.finish(launched)
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
