"""SGLang's scheduler with the iteration trace and nothing else, to compare schedules by."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler

from layered_sglang.hooks.server_args import layered_config
from layered_sglang.telemetry.trace import IterationTrace


class TracedScheduler(Scheduler):
    """Writes a line before each iteration; the schedule stays SGLang's."""

    def __init__(self, server_args: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(server_args, *args, **kwargs)
        path = layered_config(server_args).layered_trace_file
        self._trace = IterationTrace(path if self.ps.tp_rank == 0 else None)

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        self._trace.write(self.forward_ct + 1, _iteration_kind(batch), batch, None)
        return super().run_batch(batch, *args, **kwargs)


def _iteration_kind(batch: ScheduleBatch) -> str:
    if batch.forward_mode.is_mixed():
        return "mixed"
    return "prefill" if batch.forward_mode.is_extend() else "decode"
