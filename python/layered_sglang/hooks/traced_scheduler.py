"""SGLang's scheduler with the iteration trace, to compare schedules by."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch

from layered_sglang.hooks.iteration_log import IterationLog, iteration_kind
from layered_sglang.hooks.server_args import layered_config
from layered_sglang.hooks.views import batch_decode_work, decode_work
from layered_sglang.hooks.weight_updates import WeightUpdates
from layered_sglang.telemetry.trace import IterationTrace, trace_file


class TracedScheduler(WeightUpdates):
    """Writes a line for each iteration; the schedule stays SGLang's."""

    def __init__(self, server_args: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(server_args, *args, **kwargs)
        asked = layered_config(server_args).layered_trace_file
        path = trace_file(asked, self.ps.tp_rank, self.ps.dp_rank)
        self._log = IterationLog(IterationTrace(path))

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        kind = iteration_kind(batch, None)
        decodes = kind == "decode"
        decode = batch_decode_work(batch) if decodes else decode_work(batch.decoding_reqs or ())
        launched = self._log.launch(self.forward_ct + 1, kind, batch, None, decode)
        result = super().run_batch(batch, *args, **kwargs)
        self._log.launched(launched)
        result.launched_iteration = launched
        return result

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        super().process_batch_result(batch, result)
        launched = getattr(result, "launched_iteration", None)
        if launched is not None:
            self._log.finish(launched)
