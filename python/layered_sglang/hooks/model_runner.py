"""SGLang's model runner, able to run an iteration that has a layer group in it."""

from __future__ import annotations

from typing import Any

from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner, ModelRunnerOutput

from layered_sglang.executor.architectures import architecture_of
from layered_sglang.executor.iteration import LayerGroupExecutor
from layered_sglang.hooks.cohort import LayerGroupStep


class LayeredModelRunner(ModelRunner):
    """Forward batches that carry a ``layer_group_step`` go to the executor, all others to SGLang."""

    def init_attention_backends(self) -> None:
        super().init_attention_backends()
        self.layer_groups = LayerGroupExecutor(
            self, architecture_of(list(self.model_config.hf_config.architectures))
        )

    def describe_experts(self) -> str:
        """What computes the experts, for the start-up banner."""
        methods = (getattr(module, "quant_method", None) for module in self.model.modules())
        runners = {runner for method in methods if (runner := getattr(method, "runner", None))}
        if not runners:
            return "none: a dense model"
        if self.device == "cpu":
            return "SGLang's PyTorch code"
        return "SGLang's " + ", ".join(sorted({r.runner_backend.value for r in runners}))

    def _forward_raw(
        self, forward_batch: ForwardBatch, *args: Any, **kwargs: Any
    ) -> ModelRunnerOutput:
        step: LayerGroupStep | None = getattr(forward_batch, "layer_group_step", None)
        if step is None:
            return super()._forward_raw(forward_batch, *args, **kwargs)
        state = step.cohort.state
        decode = None if forward_batch is state.forward_batch else forward_batch
        logits = self.layer_groups.run(decode, state, step.layers)
        if decode is None:
            return ModelRunnerOutput(logits_output=logits.cohort, can_run_graph=False)
        output = ModelRunnerOutput(logits_output=logits.decode, can_run_graph=False)
        forward_batch.cohort_logits = logits.cohort
        return output
