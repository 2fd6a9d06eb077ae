"""Decode and a cohort's layer group side by side, each on multiprocessors (SMs) of its own.

Decode is bound by the memory and the layers of a long cohort by arithmetic, so together they use both
(benchmarks/results, 2026-11-26, overlapped execution). Short cohorts are better off merged with the
decode rows, which loads a layer's experts once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner.base_cuda_graph_runner import freeze_gc
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

from layered_sglang.executor.green_contexts import Lane, Partitioning
from layered_sglang.moe import filling_multiprocessors

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

#: Decode's SMs: 48 of 132. With fewer it takes much longer, with more the cohort does.
DECODE_SHARE = 48 / 132

T = TypeVar("T")


class PartitionedDecode(DecodeCudaGraphRunner):
    """SGLang's graphs of the whole decode step once more, for the SMs of a lane.

    Args:
        model_runner: SGLang's, after it captured its own graphs.
        lane: where they are captured and replayed.
        attention: a backend instance of its own: metadata buffers belong to the captured graphs.
    """

    def __init__(self, model_runner: ModelRunner, lane: Lane, attention: AttentionBackend) -> None:
        self._lane = lane
        super().__init__(model_runner, attn_backend=attention)  # captures

    def capture(self) -> None:
        """As SGLang's, but on the lane's stream: kernels keep to the SMs of the stream they were
        captured on."""
        self.buffers.seq_lens.fill_(self.seq_len_fill_value)
        self.buffers.seq_lens_cpu.fill_(self.seq_len_fill_value)
        self.buffers.reset_index_buffers()
        with (
            freeze_gc(self.model_runner.server_args.enable_cudagraph_gc),
            filling_multiprocessors(self._lane.sms),
            graph_capture(stream=self._lane.stream) as context,
        ):
            self.stream = context.stream
            with self.backend.capture_session(self.stream):
                self._capture_one_stream()

    def replay(self) -> LogitsProcessorOutput:
        """The batch loaded last, on the current stream; logits of the rows without padding."""
        with forward_context(ForwardContext(attn_backend=self.attn_backend)):
            logits = self.backend.replay(self._replay_graph_key, None).next_token_logits
        return LogitsProcessorOutput(next_token_logits=logits[: self.raw_bs])


class SideBySide:
    """Runs iterations of which decode has one part of the GPU and the cohort the other.

    Args:
        model_runner: SGLang's, after it captured its own graphs.
        partitioning: decode's lane, and the cohort's.
    """

    def __init__(self, model_runner: ModelRunner, partitioning: Partitioning) -> None:
        self._lanes = partitioning
        self._device = torch.get_device_module(model_runner.device)
        attention = model_runner._get_attention_backend(init_new_workspace=True)
        self._decode = PartitionedDecode(model_runner, partitioning.first, attention)

    def describe(self) -> str:
        """One phrase for the start-up banner."""
        first, second = self._lanes.first.sms, self._lanes.second.sms
        return f"decode on {first} multiprocessors beside longer ones on {second}"

    def takes(self, decode: ForwardBatch) -> bool:
        """Whether there is a graph for these decode rows."""
        return self._decode.can_run_graph(decode)

    def run(
        self, decode: ForwardBatch, planned: Callable[[], None], run_cohort: Callable[[], T]
    ) -> tuple[LogitsProcessorOutput, T]:
        """Run ``decode`` through all layers, and beside it what ``run_cohort`` launches.

        NOTE: both lanes begin when the current stream gets here, and it goes on when both are done. So
        memory that one stream's allocator gives again was used last before that.

        Args:
            decode: the running requests' rows.
            planned: called once decode's attention is planned.
            run_cohort: launches the cohort's layers on the current stream.

        Returns:
            Decode's logits, and what ``run_cohort`` returned; for use on the current stream.
        """
        self._decode.load_batch(decode)
        planned()
        forward = self._device.current_stream()
        first, second, _ = self._lanes
        for lane in (first, second):
            lane.stream.wait_stream(forward)
        with self._device.stream(first.stream):
            logits = self._decode.replay()
        with self._device.stream(second.stream), filling_multiprocessors(second.sms):
            cohort = run_cohort()
        for lane in (first, second):
            forward.wait_stream(lane.stream)
        return logits, cohort
