"""A test's own SGLang plugin: writes down which rows really pass which decoder layer.

It watches the layers themselves (a forward pre-hook on each), not the plan. For every layer call it
notes the KV slot and position of each row; after the forward it finds the request that owns the slot
in SGLang's request-to-token table. One JSON line an iteration goes to ``LAYER_PROBE_FILE``.
"""

from __future__ import annotations

import json
import os
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

_calls: list[tuple[int, list[int], list[int]]] = []


def _watch_layers(result: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    """After ``ModelRunner.init_attention_backends``: hook every decoder layer."""

    def before(layer_id: int):
        def hook(_module: Any, args: tuple, kwargs: dict) -> None:
            positions = kwargs.get("positions", args[0] if args else None)
            batch = kwargs.get("forward_batch", args[2] if len(args) > 2 else None)
            _calls.append((layer_id, positions.tolist(), batch.out_cache_loc.tolist()))

        return hook

    for i, layer in enumerate(runner.model.model.layers):
        layer.register_forward_pre_hook(before(i), with_kwargs=True)


def _write_iteration(original: Any, scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``Scheduler.run_batch``: who took part, and what the layers saw."""
    step = getattr(scheduler, "planned_step", None)
    reqs = {req.rid: req.req_pool_idx for req in batch.reqs}
    cohort: list[str] = []
    if step is not None:
        cohort = [req.rid for req in step.cohort.reqs]
        reqs |= {req.rid: req.req_pool_idx for req in step.cohort.reqs}
    running = [r.rid for r in scheduler.running_batch.reqs if not r.finished()]
    _calls.clear()
    result = original(scheduler, batch, *args, **kwargs)
    table = scheduler.req_to_token_pool.req_to_token
    triples = []
    for layer, positions, slots in _calls:
        for position, slot in zip(positions, slots, strict=True):
            owners = [rid for rid, row in reqs.items() if int(table[row, position]) == slot]
            triples.append([owners, position, layer])
    own_cohort = getattr(result, "cohort_result", None)
    record = {
        "mode": "decode" if batch.forward_mode.is_decode() else "extend",
        "batch": [req.rid for req in batch.reqs],
        "cohort": cohort,
        "last": step is not None and step.is_last,
        "running": running,
        "triples": triples,
        "sampled": len(result.next_token_ids) if result.next_token_ids is not None else 0,
        "cohort_sampled": 0 if own_cohort is None else len(own_cohort.result.next_token_ids),
    }
    with open(os.environ["LAYER_PROBE_FILE"], "a") as out:
        out.write(json.dumps(record) + "\n")
    return result


def activate() -> None:
    """Entry point ``sglang.srt.plugins``; does nothing outside scheduler processes of the test."""
    from layered_sglang.hooks import registration

    if "LAYER_PROBE_FILE" not in os.environ or not registration.in_scheduler_process:
        return
    HookRegistry.register(
        "sglang.srt.model_executor.model_runner.ModelRunner.init_attention_backends",
        _watch_layers,
        HookType.AFTER,
    )
    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler.run_batch", _write_iteration, HookType.AROUND
    )
