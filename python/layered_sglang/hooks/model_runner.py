"""SGLang's model runner, able to run an iteration that has a layer group in it."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner, ModelRunnerOutput
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import FullCudaGraphBackend
from sglang.srt.utils.nvtx_utils import profile_range

from layered_sglang.config import LayeredConfig, StartRefused
from layered_sglang.executor.architectures import architecture_of
from layered_sglang.executor.green_contexts import Partitioning, split_device
from layered_sglang.executor.iteration import LayerGroupExecutor
from layered_sglang.executor.side_by_side import DECODE_SHARE
from layered_sglang.hooks.cohort import LayerGroupStep
from layered_sglang.hooks.kv_budget import BudgetedKVCacheConfigurator, needs_of
from layered_sglang.hooks.server_args import layered_config


class _MemoryTaken:
    """GiB of the GPU's memory, whoever took them."""

    def __init__(self) -> None:
        self._free = torch.cuda.mem_get_info()[0]

    def since(self) -> float:
        """What was taken since the last call, or the start."""
        before, self._free = self._free, torch.cuda.mem_get_info()[0]
        return (before - self._free) / 2**30


def _nothing() -> None:
    """Decode follows, and says itself when it has read the tables."""


class LayeredModelRunner(ModelRunner):
    """Forward batches that carry a ``layer_group_step`` go to the executor, all others to SGLang."""

    kv_cache_configurator: Any  # SGLang's, then ours

    def init_kv_cache_configurator(self) -> None:
        super().init_kv_cache_configurator()
        self.kv_cache_configurator = BudgetedKVCacheConfigurator.extend(
            self.kv_cache_configurator, needs_of(self)
        )

    def init_attention_backends(self) -> None:
        super().init_attention_backends()
        self.layer_groups = LayerGroupExecutor(
            self,
            architecture_of(list(self.model_config.hf_config.architectures)),
            with_decode=not self.spec_algorithm.is_speculative(),
        )

    def init_cuda_graphs(self, *args: Any, **kwargs: Any) -> None:
        self.graphs_text = "none"
        super().init_cuda_graphs(*args, **kwargs)
        runner = self.decode_cuda_graph_runner
        if self.server_args.enable_lora:
            self.graphs_text = "none with --enable-lora"
        elif self.spec_algorithm.is_speculative():
            self.graphs_text = "none with --speculative-algorithm"
            self._refuse_captured_ends()
            if self.device == "cuda":
                self._load_kernels(decode_rows=0)
        elif isinstance(runner, DecodeCudaGraphRunner) and isinstance(
            runner.backend, FullCudaGraphBackend
        ):
            config = layered_config(self.server_args)
            taken = _MemoryTaken()
            self.graphs_text = self.layer_groups.capture_graphs(
                self, config.layered_cuda_graph_max_tokens, self._partitioning(config)
            )
            self.graphs_text += f" ({taken.since():.1f} GiB)"
            self._load_kernels(int(runner.max_bs))
        if (
            self.graphs_text.startswith("none")
            and layered_config(self.server_args).layered_execution == "overlapped"
        ):
            raise StartRefused(
                "--layered-execution overlapped needs SGLang's full decode CUDA graphs, and there are "
                "none on this device or with these flags; use merged"
            )

    def _refuse_captured_ends(self) -> None:
        """Refuse drafts that read what no layer group begins with."""
        captured = self.layer_groups.model.captured
        ends = {0, self.layer_groups.model.num_layers}.intersection(captured)
        if ends:
            raise StartRefused(
                "layered prefill does not work with a draft model that reads the embeddings or the last "
                f"layer's output (this one reads what comes before layers {captured} of "
                f"{self.layer_groups.model.num_layers}); use another, or --prefill-schedule chunked"
            )

    def _load_kernels(self, decode_rows: int) -> None:
        """Load the kernels of layer groups without graphs. Not where they depend on the number of rows:
        those of deterministic inference, of which each number takes long."""
        if self.server_args.enable_deterministic_inference:
            return
        taken = _MemoryTaken()
        most_rows = layered_config(self.server_args).layered_max_prefill_tokens + decode_rows
        self.layer_groups.load_kernels(most_rows, self.device)
        self.graphs_text += f"; kernels for up to {most_rows} rows ({taken.since():.1f} GiB)"

    def _partitioning(self, config: LayeredConfig) -> Partitioning | None:
        """The lanes of ``--layered-execution overlapped``.

        Raises:
            StartRefused: this GPU or driver cannot be partitioned.
        """
        if config.layered_execution != "overlapped":
            return None
        if self.server_args.tp_size > 1:
            raise StartRefused(
                "--layered-execution overlapped runs on one GPU: the sums over ranks would need "
                "communicators of each part; use merged with --tp"
            )
        sms = torch.cuda.get_device_properties(self.gpu_id).multi_processor_count
        try:
            return split_device(round(DECODE_SHARE * sms))
        except (AttributeError, ImportError, RuntimeError) as error:
            raise StartRefused(
                f"--layered-execution overlapped cannot partition this GPU: {error}; use merged"
            ) from error

    @property
    def decode_graph_sizes(self) -> tuple[int, ...]:
        """Batch sizes that decode beside a layer group replays graphs of, ascending; empty without."""
        runner = self.decode_cuda_graph_runner
        if not self.spec_algorithm.is_speculative():
            return self.layer_groups.decode_sizes
        return tuple(runner.capture_bs) if isinstance(runner, DecodeCudaGraphRunner) else ()

    def describe_memory(self) -> str:
        """What was taken from the KV cache's share, and the cache, for the start-up banner."""
        taken = self.kv_cache_configurator.describe()
        return f"{taken}; KV cache of {self.max_total_num_tokens} tokens"

    def describe_experts(self) -> str:
        """What computes the experts, for the start-up banner (``hooks/moe_runner.py`` says it)."""
        return self.experts_text

    def _forward_raw(
        self, forward_batch: ForwardBatch, *args: Any, **kwargs: Any
    ) -> ModelRunnerOutput:
        step: LayerGroupStep | None = getattr(forward_batch, "layer_group_step", None)
        if step is None:
            return super()._forward_raw(forward_batch, *args, **kwargs)
        state = step.cohort.state
        decode = None if forward_batch is state.forward_batch else forward_batch
        if decode is not None and step.is_first:
            # States of linear attention begin as zeros or as the cached prefix's. SGLang sees to that
            # for the batch that it was given, once.
            self._maybe_execute_deferred_mamba_cow_and_clear(state.forward_batch)
        apart = decode is None and not step.is_last
        planned = _nothing if apart else self._publish_tables_read
        with profile_range(f"layer_group{step.layers} tokens={step.cohort.tokens}"):
            logits = self.layer_groups.run(decode, state, step.layers, planned)
        if decode is None:
            return ModelRunnerOutput(logits_output=logits.cohort, can_run_graph=False)
        output = ModelRunnerOutput(logits_output=logits.decode, can_run_graph=False)
        forward_batch.cohort_logits = logits.cohort
        return output

    def _publish_tables_read(self) -> None:
        """Let the scheduler write its request tables again while this forward goes on; without the
        event it waits for all of it."""
        if self.device == "cuda":
            self.war_fastpath_read_done_event = torch.cuda.Event()
            self.war_fastpath_read_done_event.record()
