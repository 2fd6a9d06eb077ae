"""SGLang's tensor-parallel worker, able to forward a cohort beside or instead of a decode batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import get_schedule

from layered_sglang.hooks.cohort import Cohort, LayerGroupStep
from layered_sglang.hooks.model_runner import LayeredModelRunner


class LayeredTpWorker(TpModelWorker):
    """A batch with a ``layer_group_step`` runs it; the cohort's first tokens come back as
    ``result.cohort_result`` (a ``GenerationBatchResult``), or as the result itself when nobody
    decodes."""

    def _init_model_runner(self) -> None:
        self._model_runner = LayeredModelRunner(
            model_config=self.model_config,
            mem_fraction_static=get_schedule().mem_fraction_static,
            gpu_id=self.gpu_id,
            ps=self.ps,
            nccl_port=self.nccl_port,
            server_args=self.server_args,
            is_draft_worker=self.is_draft_worker,
            req_to_token_pool=self.req_to_token_pool,
            token_to_kv_pool_allocator=self.token_to_kv_pool_allocator,
            memory_pool_config=self.memory_pool_config,
            draft_model_idx=None,
        )

    def forward_batch_generation(
        self, batch: ScheduleBatch | None, *args: Any, **kwargs: Any
    ) -> GenerationBatchResult:
        step: LayerGroupStep | None = getattr(batch, "layer_group_step", None)
        if batch is None or step is None:
            return super().forward_batch_generation(batch, *args, **kwargs)
        cohort = step.cohort
        cohort_rows = self.cohort_inputs(cohort)
        if batch is cohort.batch:
            # The scheduler has swapped in the forward-only copy of the sampling info.
            rows = cohort_rows
            if kwargs.get("capture_hidden_mode") is not None:
                rows.capture_hidden_mode = kwargs["capture_hidden_mode"]  # a draft reads them
            rows.sampling_info = _with_grammars(batch.sampling_info, batch)
        else:
            rows = self._inputs(batch)
        if self.server_args.enable_lora:
            self._load_adapters(rows, cohort_rows)
        rows.layer_group_step = step
        self.set_hicache_consumer(-1)  # the cohort's rows alone wait, and the executor sees to it
        try:
            result = super().forward_batch_generation(None, forward_batch=rows)
        finally:
            del rows.layer_group_step  # or cohort, state and rows would hold one another
        if rows is not cohort_rows and step.is_last:
            result.cohort_result = self._first_tokens(cohort, rows.cohort_logits)
        # The cohort's device tensors were made on the schedule stream: hold them, like SGLang holds
        # the decode batch's, until this forward is surely over.
        held = cohort.state.made_for_launch()
        result.extra_keep_alive_refs = [*(result.extra_keep_alive_refs or ()), *held]
        return result

    def run_layer_group(self, step: LayerGroupStep) -> None:
        """Launch a layer group by itself, not its cohort's last."""
        rows = self.cohort_inputs(step.cohort)
        rows.layer_group_step = step
        self.set_hicache_consumer(-1)
        try:
            self.model_runner.forward(rows)
        finally:
            del rows.layer_group_step

    def _inputs(self, batch: ScheduleBatch) -> ForwardBatch:
        return ForwardBatch.init_new(
            batch, self.model_runner, return_hidden_states_before_norm=False
        )

    def _load_adapters(self, *batches: ForwardBatch) -> None:
        """Have the adapters of all ``batches`` in memory; the first one's may be read by a graph.

        Building one batch's inputs may have taken the place of the other's adapters.
        """
        manager = self.model_runner.lora_manager
        manager.fetch_new_loras({name for batch in batches for name in batch.lora_ids or ()})
        manager.prepare_lora_batch(batches[0])

    def cohort_inputs(self, cohort: Cohort) -> ForwardBatch:
        """The cohort's forward batch, made once.

        NOTE: the scheduler calls this first on its own stream, because copies from pageable memory
        wait for their stream: on the forward stream, for the iteration before, with the launch of this
        one still to do. The forward stream waits for the scheduler's before it reads them.

        NOTE: ``batch.input_ids`` stays set while the cohort is in flight. Were it ``None``, SGLang
        would take the prompt's tokens from the relay of sampled tokens.
        """
        state, batch = cohort.state, cohort.batch
        if state.forward_batch is None:
            if batch.prefill_input_ids_cpu is not None:
                batch.input_ids = batch.prefill_input_ids_cpu.to(batch.device, non_blocking=True)
                batch.prefill_input_ids_cpu = None
            state.forward_batch = self._inputs(batch)
            state.loads = batch.hicache_consumer_index
            state.inputs = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
        return state.forward_batch

    def _first_tokens(self, cohort: Cohort, logits: Any) -> GenerationBatchResult:
        """Sample a cohort's first tokens from its ``logits``, as the worker does for a batch.

        A grammar needs no delay here: a cohort's requests have no token on its way that would have
        to advance it first.
        """
        rows, batch = cohort.state.forward_batch, cohort.batch
        assert rows is not None
        info = batch.sampling_info
        rows.sampling_info = _with_grammars(
            info.copy_for_forward() if self.enable_overlap else info, batch
        )
        result = GenerationBatchResult(logits_output=logits, can_run_cuda_graph=False)
        if rows.is_prefill_only:
            result.next_token_ids = torch.zeros(
                len(batch.reqs), dtype=torch.long, device=rows.input_ids.device
            )
            if rows.return_logprob and logits.next_token_logits is not None:
                self.model_runner.compute_logprobs_only(logits, rows)
        else:
            result.next_token_ids = self.model_runner.sample(logits, rows)
        return result


def _with_grammars(sampling_info: Any, batch: ScheduleBatch) -> Any:
    sampling_info.grammars = [req.grammar for req in batch.reqs] if batch.has_grammar else None
    return sampling_info
