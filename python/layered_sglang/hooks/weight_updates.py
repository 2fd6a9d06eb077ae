"""New weights while serving: told to the scheduler, and refused where they could not be used.

SGLang copies new weights into its own parameters, which our kernels read. MXFP4 experts that were brought
into our layout (``moe_runner_mxfp4.py``) have such parameters no more: SGLang's loader would end the
scheduler, or pass over experts that come in bfloat16 and report success.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.managers.io_struct import (
    UpdateWeightFromDiskReqOutput,
    UpdateWeightsFromDistributedReqOutput,
    UpdateWeightsFromIPCReqOutput,
    UpdateWeightsFromTensorReqOutput,
)
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components import weight_updater
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

from layered_sglang.hooks.moe_runner_mxfp4 import has_our_layout

logger = logging.getLogger(__name__)

#: All of an update is refused, also of other weights than the experts': trainers send them in pieces, and
#: a model is not to be left with some of them.
REFUSAL = (
    "the weights stay as they are: the MXFP4 experts are in the layout of layered_sglang's kernels, into "
    "which new ones are not brought while serving; start a server with the new weights"
)


class WeightUpdates(Scheduler):
    """SGLang's scheduler, which carries out only those updates of weights that will be used."""

    weight_updater: Any  # SGLang's, then ours

    def init_weight_updater(self) -> None:
        super().init_weight_updater()
        self.weight_updater = CheckedWeightUpdater.extend(self.weight_updater)

    def weights_will_change(self) -> None:
        """Called on every rank, right before new weights take the place of the old ones."""


class CheckedWeightUpdater(SchedulerWeightUpdaterManager):
    """SGLang's, which asks first whether the model's weights can be updated.

    Attributes:
        scheduler: SGLang's field; a :class:`WeightUpdates`.
    """

    @classmethod
    def extend(cls, stock: SchedulerWeightUpdaterManager) -> CheckedWeightUpdater:
        fields = dataclasses.fields(SchedulerWeightUpdaterManager)
        return cls(**{field.name: getattr(stock, field.name) for field in fields})

    def update_weights_from_disk(self, recv_req: Any) -> Any:
        return self._update(
            super().update_weights_from_disk, recv_req, UpdateWeightFromDiskReqOutput
        )

    def update_weights_from_distributed(self, recv_req: Any) -> Any:
        return self._update(
            super().update_weights_from_distributed, recv_req, UpdateWeightsFromDistributedReqOutput
        )

    def update_weights_from_tensor(self, recv_req: Any) -> Any:
        return self._update(
            super().update_weights_from_tensor, recv_req, UpdateWeightsFromTensorReqOutput
        )

    def update_weights_from_ipc(self, recv_req: Any) -> Any:
        return self._update(
            super().update_weights_from_ipc, recv_req, UpdateWeightsFromIPCReqOutput
        )

    def _update(self, stock: Callable[[Any], Any], recv_req: Any, answer: type) -> Any:
        reason = self._why_refused()
        if reason is None:
            self.scheduler.weights_will_change()
            return stock(recv_req)
        logger.warning("Refused %s: %s", type(recv_req).__name__, reason)
        return answer(success=False, message=reason)

    def _why_refused(self) -> str | None:
        """Why no rank may change its weights. Some may have our layout and others not: a group's scale
        can rule it out on one rank alone."""
        runners = [self.tp_worker.model_runner]
        if self.draft_worker is not None:
            runners.append(weight_updater._get_draft_model_runner(self.draft_worker))
        ours = any(runner is not None and has_our_layout(runner.model) for runner in runners)
        ranks = torch.distributed.get_world_size(group=self.tp_cpu_group)
        if ranks > 1:
            found = [False] * ranks
            torch.distributed.all_gather_object(found, ours, group=self.tp_cpu_group)
            ours = any(found)
        return REFUSAL if ours else None
