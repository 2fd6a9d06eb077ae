"""Layer groups where a draft model speculates: they run right before decode, not in its forward.

Decode is then several forwards of SGLang's: the draft's, the model's that verifies it, the draft's again.
And the draft reads a prompt when the model has: SGLang's worker sees to that for prefill batches, so a
cohort ends as one, in an iteration without decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sglang.srt.managers.schedule_batch import NextBatchPlan, Req, ScheduleBatch

from layered_sglang.hooks.cohort import Cohort, LayerGroupStep
from layered_sglang.hooks.layer_group_steps import LayerGroupSteps
from layered_sglang.hooks.views import decode_work, unfinished
from layered_sglang.scheduling import CohortView, DecodeWork, LayerGroup


class StepsBeforeDecode(LayerGroupSteps):
    """Plans and launches layer groups apart from decode.

    What a launched layer group reads was made on the schedule stream. With overlap SGLang holds it as
    long as the decode batch that was launched behind it: until the second launch from then.

    Whether a cohort ends is asked before SGLang says who decodes. If the answer is no, it is kept until
    that is known, and is the answer if the question is still the same. It is another one if rows were
    retracted, or if SGLang keeps the rows' lengths on the host, where they may differ from what requests
    say. The answer is of no use to the next iteration: the estimator may have learnt.
    """

    _answer: tuple[CohortView, LayerGroup] | None = None

    def describe(self) -> str:
        return "before decode"

    def end_before_decode(self, running_batch: ScheduleBatch) -> NextBatchPlan | None:
        self._answer = None
        if not self._cohorts.in_flight:
            return None
        cohort = self._cohorts.in_flight[-1]
        reqs = [running_batch.reqs[i] for i in unfinished(running_batch)]
        view = self._planning.view(cohort, decode_work(reqs), reqs)
        layers = self._choose(view)
        if layers.end < cohort.num_layers:
            self._answer = view, layers
            return None
        return self._as_prefill(cohort, layers, running_batch)

    def _choose(self, view: CohortView) -> LayerGroup:
        answer, self._answer = self._answer, None
        if answer is not None and answer[0] == view:
            return answer[1]
        return super()._choose(view)

    def _beside_decode(
        self, cohort: Cohort, rows: DecodeWork, reqs: Iterable[Req]
    ) -> LayerGroup | None:
        layers = super()._beside_decode(cohort, rows, reqs)
        if layers is None or layers.end < cohort.num_layers:
            return layers
        # As planned before some of the rows were retracted, it was not the last one.
        layers = LayerGroup(layers.start, cohort.num_layers - 1)
        return None if layers.start == layers.end else layers

    def _forward(
        self, step: LayerGroupStep, batch: ScheduleBatch, run_batch: Callable[[], Any]
    ) -> Any:
        if batch is step.cohort.batch:  # it ends, as a prefill
            return super()._forward(step, batch, run_batch)
        s = self._scheduler
        if not s.enable_overlap:
            s.tp_worker.run_layer_group(step)
            return run_batch()
        with s.forward_stream_ctx:
            s.forward_stream.wait_stream(s.schedule_stream)
            s.tp_worker.run_layer_group(step)
        result = run_batch()
        s.batch_record_buf[s.batch_record_ct] += step.cohort.state.made_for_launch()
        return result
