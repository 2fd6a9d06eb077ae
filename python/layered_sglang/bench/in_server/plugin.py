"""SGLang plugin of the benchmark. Not installed: ``bench run`` names it to the servers it starts."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

#: File for the expert counts; nothing is counted without it.
EXPERTS_ENV = "LAYERED_SGLANG_BENCH_EXPERTS"
#: Set where the router may be shaped, so that dummy weights route about as a trained model's.
ROUTER_ENV = "LAYERED_SGLANG_BENCH_ROUTER"
#: Set where SGLang's own schedule may be changed.
CHUNKS_ENV = "LAYERED_SGLANG_BENCH_CHUNKS"
#: Keys of SGLang's ``/set_internal_state``, which takes numbers: 1 shapes the router, 0 makes it what it
#: was; SGLang's own schedule cuts prompts at so many tokens from now on; it mixes decode rows with
#: them (1) or not (0).
ROUTER_KEY = "bench_router_shaped"
CHUNKS_KEY = "bench_chunked_prefill_size"
MIXED_KEY = "bench_mixed_chunk"
#: For the last two: as the server's flags say.
AS_STARTED = -1

ENTRY_POINT = "layered_sglang_bench = layered_sglang.bench.in_server.plugin:activate"

_MODEL_RUNNER = "sglang.srt.model_executor.model_runner.ModelRunner"
_TOPK = "sglang.srt.layers.moe.topk.TopK"
_RUN_BATCH = "sglang.srt.managers.scheduler.Scheduler.run_batch"
_SET_STATE = "sglang.srt.managers.scheduler.Scheduler.set_internal_state"

_loads: Any = None
_routers: Any = None


def activate() -> None:
    """Entry point ``sglang.srt.plugins``; the server's first process runs no model."""
    experts, router, chunks = map(os.environ.get, (EXPERTS_ENV, ROUTER_ENV, CHUNKS_ENV))
    if multiprocessing.parent_process() is None or not (experts or router or chunks):
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{_MODEL_RUNNER}.load_model", _after_load_model, HookType.AFTER)
    if router or chunks:
        HookRegistry.register(_SET_STATE, _around_set_internal_state, HookType.AROUND)
    if experts:
        HookRegistry.register(f"{_MODEL_RUNNER}.forward", _after_forward, HookType.AFTER)
        HookRegistry.register(_RUN_BATCH, _around_run_batch, HookType.AROUND)
        for name in ("forward_native", "forward_cuda", "forward_cpu"):
            HookRegistry.register(f"{_TOPK}.{name}", _after_topk, HookType.AFTER)


def _after_load_model(result: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    global _loads, _routers
    if os.environ.get(ROUTER_ENV):
        from layered_sglang.bench.in_server.shaped_router import Routers

        _routers = Routers(runner.model)
    path = os.environ.get(EXPERTS_ENV)
    if path and runner.ps.tp_rank == 0:
        from layered_sglang.bench.in_server.expert_loads import ExpertLoads

        _loads = ExpertLoads.of_model(runner.model, path, time.monotonic)
    return result


def _around_set_internal_state(original: Any, scheduler: Any, request: Any) -> Any:
    """SGLang hands the request to every rank; each shapes its own copy of the routers."""
    asked, started = request.server_args, scheduler.server_args
    shaped = asked.pop(ROUTER_KEY, None)
    if shaped is not None and _routers is not None:
        _routers.set(bool(shaped))
    chunk, mixed = asked.pop(CHUNKS_KEY, None), asked.pop(MIXED_KEY, None)
    if chunk is not None:
        size = started.chunked_prefill_size if chunk == AS_STARTED else chunk
        scheduler.chunked_prefill_size = size
    if mixed is not None:
        scheduler.is_mixed_chunk = bool(
            started.enable_mixed_chunk if mixed == AS_STARTED else mixed
        )
    return original(scheduler, request)


def _after_topk(result: Any, topk: Any, *args: Any, **kwargs: Any) -> Any:
    if _loads is not None:
        _loads.routed(topk, result)
    return result


def _after_forward(result: Any, *args: Any, **kwargs: Any) -> Any:
    if _loads is not None:
        _loads.iteration_ends()
    return result


def _around_run_batch(original: Any, scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    if _loads is not None:
        step = getattr(scheduler, "planned_step", None)
        if step is not None:
            kind = "prompts"
        else:
            kind = "prompts" if batch.forward_mode.is_extend() else "decode"
        _loads.iteration_begins(kind)
    return original(scheduler, batch, *args, **kwargs)
