"""A test's own SGLang plugin: each rank writes down its plan, and one rank is slow.

One JSON line an iteration goes to ``rank<N>.jsonl`` in the folder ``RANK_PROBE``. ``SLOW_RANK`` is the
rank that sleeps before every third iteration. With ``FUSED_SUMS`` layers postpone their sums over
ranks to the next layer's norm, as SGLang has it on a Hopper GPU.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

SECONDS = 0.03
fused_sums = 0


def _write_plan(original: Any, scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``Scheduler.run_batch``."""
    rank, step = scheduler.ps.tp_rank, getattr(scheduler, "planned_step", None)
    plan = {
        "mode": batch.forward_mode.name,
        "batch": [req.rid for req in batch.reqs],
        "layers": None if step is None else [step.layers.start, step.layers.end],
        "cohort": [] if step is None else [req.rid for req in step.cohort.reqs],
        "fused_sums": fused_sums,
    }
    with open(Path(os.environ["RANK_PROBE"]) / f"rank{rank}.jsonl", "a") as out:
        out.write(json.dumps(plan) + "\n")
    if os.environ.get("SLOW_RANK") == str(rank) and scheduler.forward_ct % 3 == 0:
        time.sleep(SECONDS)
    return original(scheduler, batch, *args, **kwargs)


def _without_foreign_experts(
    original: Any, layer: Any, x: Any, topk_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around SGLang's experts in PyTorch, which do not know that -1 is another rank's expert."""
    ids, weights = topk_output.topk_ids, topk_output.topk_weights
    if (ids >= 0).all():
        return original(layer, x, topk_output, *args, **kwargs)
    # One choice at a time: a row may have the stand-in for foreign experts several times.
    choices = zip(
        ids.clamp(min=0).split(1, dim=1),
        weights.masked_fill(ids < 0, 0).split(1, dim=1),
        strict=True,
    )
    return sum(
        original(layer, x, topk_output._replace(topk_ids=i, topk_weights=w), *args, **kwargs)
        for i, w in choices
    )


def _postpone_sums() -> None:
    """Let SGLang fuse sums over ranks with norms, here by a kernel's stand-in."""
    from sglang.srt.distributed import tensor_model_parallel_all_reduce
    from sglang.srt.layers import communicator, flashinfer_comm_fusion

    def fused_sum(
        input_tensor: Any, residual: Any, weight: Any, eps: float, **_: Any
    ) -> tuple[Any, Any]:
        global fused_sums
        fused_sums += 1
        residual = tensor_model_parallel_all_reduce(input_tensor) + residual
        scale = residual.pow(2).mean(-1, keepdim=True).add(eps).rsqrt()
        return residual * scale * weight, residual

    communicator.apply_flashinfer_allreduce_fusion = lambda rows: 0 < rows <= 2048
    flashinfer_comm_fusion.flashinfer_allreduce_residual_rmsnorm = fused_sum


def activate() -> None:
    """Entry point ``sglang.srt.plugins``; does nothing outside scheduler processes of the test."""
    from layered_sglang.hooks import registration

    if "RANK_PROBE" not in os.environ or not registration.in_scheduler_process:
        return
    if os.environ.get("FUSED_SUMS"):
        _postpone_sums()
    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler.run_batch", _write_plan, HookType.AROUND
    )
    HookRegistry.register(
        "sglang.srt.layers.moe.fused_moe_native.moe_forward_native",
        _without_foreign_experts,
        HookType.AROUND,
    )
