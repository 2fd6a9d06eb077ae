"""A plugin for SGLang: what the scheduler process does in an iteration, part by part, in host time.

Each part is measured exclusively: what runs inside another part is not counted there as well. Nothing
is wrapped before the file START appears in the folder HOST_CLOCK; from the next idle moment on every
turn of the scheduler's loop that launches a batch is noted, and written as one JSON line to
turns-PID.jsonl there when the scheduler is idle again. In SGLang's own server the same parts are
measured as in the layered one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "HOST_CLOCK"
START = "start"
#: Parts of a turn. ``gpu`` is no work: there the host waits for the last iteration's result.
PARTS = {
    "receive": "requests taken from the socket and put into the queue",
    "plan": "layer group policy: cost model, admission, what was learnt (layered only)",
    "schedule": "SGLang's choice of the next batch",
    "prepare": "rows of the batch: KV slots, tensors of its inputs, copies into the graphs' inputs",
    "metadata": "the attention backend's plan",
    "graphs": "graph replays",
    "eager": "launches of layers, or of attention between graphs",
    "sample": "launches of the sampler",
    "launch": "the rest of the launch: streams, events, the relay of tokens, the result's copy",
    "results": "the last iteration's tokens: stop conditions, what is sent to the front end",
    "loop": "what is left of the turn",
    "gpu": "waiting for the last iteration's result",
}
MOST_TURNS = 200_000


class HostClock:
    """Time by part, exclusively, turn by turn.

    Args:
        now: nanoseconds.
    """

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now = now
        self._part: str | None = None  # running; None: between turns
        self._since = 0
        self._ns: dict[str, int] = {}
        self._calls = 0
        self._about: dict[str, Any] = {}
        self.turns: list[dict[str, Any]] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted for ``part``, where no turn runs nothing is counted."""

        def run(*args: Any, **kwargs: Any) -> Any:
            outer = self._part
            if outer is None:
                return function(*args, **kwargs)
            self._enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._enter(outer)

        return run

    def _enter(self, part: str) -> None:
        now = self._now()
        assert self._part is not None
        self._ns[self._part] = self._ns.get(self._part, 0) + now - self._since
        self._part, self._since = part, now
        self._calls += 1

    def note(self, **about: Any) -> None:
        """Say what this turn does. A turn of which nothing was said is dropped."""
        self._about |= about

    def turn(self) -> None:
        """The turn before ends, the next begins."""
        self.stop()
        self._part, self._since = "loop", self._now()

    def stop(self) -> None:
        """The turn ends."""
        if self._part is not None and self._about and len(self.turns) < MOST_TURNS:
            self._enter("loop")
            self.turns.append({**self._about, "changes": self._calls, "ns": self._ns})
        self._part, self._ns, self._calls, self._about = None, {}, 0, {}


def cost_of_a_change() -> float:
    """Nanoseconds that the clock itself takes for one change of part (a timed call makes two)."""
    clock = HostClock()
    call, count = clock.timed("sample", lambda: None), 5000
    clock.turn()
    start = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - start) / (2 * count)


def activate() -> None:
    """Entry point ``sglang.srt.plugins``."""
    if FOLDER not in os.environ:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.managers.scheduler.Scheduler.run_event_loop"
    HookRegistry.register(target, _watch_idle, HookType.BEFORE)


def _watch_idle(scheduler: Any) -> None:
    """Before the loop: from now on look, whenever idle, whether to measure and what to write."""
    folder = Path(os.environ[FOLDER])
    clock: HostClock | None = None
    on_idle = scheduler.on_idle

    def idle() -> None:
        nonlocal clock
        if clock is not None:
            clock.stop()
            _write(clock, folder / f"turns-{os.getpid()}.jsonl")
        elif (folder / START).exists():
            clock = HostClock()
            install(scheduler, clock)
            about = {"cost_of_a_change_ns": cost_of_a_change()}
            (folder / f"clock-{os.getpid()}.json").write_text(json.dumps(about))
        on_idle()

    scheduler.on_idle = idle


def _write(clock: HostClock, path: Path) -> None:
    if clock.turns:
        with open(path, "a") as out:
            out.writelines(json.dumps(turn) + "\n" for turn in clock.turns)
        clock.turns.clear()


# --- where the parts are ------------------------------------------------------------------------------


def install(scheduler: Any, clock: HostClock) -> None:
    """Wrap the parts of ``scheduler`` and of what it calls."""
    _wrap_turns(scheduler, clock)
    _wrap(scheduler, clock, "receive", "process_input_requests")
    _wrap(scheduler, clock, "schedule", "get_next_batch_to_run")
    _wrap(scheduler, clock, "sample", "launch_batch_sample_if_needed")
    _wrap_launch(scheduler, clock)
    _wrap_results(scheduler, clock)
    _wrap_batches(clock)
    worker = scheduler.tp_worker
    _wrap_runner(worker.model_runner, clock)
    if hasattr(scheduler, "_planning"):
        for name in ("next_layer_group", "admit", "predict"):
            _wrap(scheduler._planning.planner, clock, "plan", name)
        _wrap(scheduler._admission.gate, clock, "plan", "view")
    if hasattr(worker, "cohort_inputs"):
        _wrap(worker, clock, "prepare", "cohort_inputs")
        _wrap_executor(clock)


def _wrap(owner: Any, clock: HostClock, part: str, name: str) -> None:
    """On a class, or on an object, which may be frozen."""
    write = setattr if isinstance(owner, type) else object.__setattr__
    write(owner, name, clock.timed(part, getattr(owner, name)))


def _wrap_turns(scheduler: Any, clock: HostClock) -> None:
    receiver = type(scheduler.request_receiver)  # with slots, so on its class
    receive = clock.timed("receive", receiver.recv_requests)

    def receive_first(*args: Any, **kwargs: Any) -> Any:
        clock.turn()
        return receive(*args, **kwargs)

    receiver.recv_requests = receive_first


def _wrap_launch(scheduler: Any, clock: HostClock) -> None:
    run_batch = clock.timed("launch", scheduler.run_batch)

    def launch(batch: Any, *args: Any, **kwargs: Any) -> Any:
        clock.note(kind="decode" if batch.forward_mode.is_decode() else "prefill")
        clock.note(batch=len(batch.reqs))
        result = run_batch(batch, *args, **kwargs)
        iteration = getattr(result, "launched_iteration", None)
        if iteration is not None and iteration.layers:
            clock.note(kind="merged", layers=iteration.layers, tokens=iteration.cohort.tokens)
        return result

    scheduler.run_batch = launch
    _wrap(scheduler, clock, "launch", "_apply_war_barrier")


def _wrap_results(scheduler: Any, clock: HostClock) -> None:
    process = clock.timed("results", scheduler.process_batch_result)

    def wait(result: Any) -> None:
        done = getattr(result, "copy_done", None)
        if done is not None:
            done.synchronize()

    wait_for_gpu = clock.timed("gpu", wait)

    def process_result(batch: Any, result: Any) -> Any:
        wait_for_gpu(result)  # processing begins with it anyway
        return process(batch, result)

    scheduler.process_batch_result = process_result


def _wrap_batches(clock: HostClock) -> None:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

    prepare = ScheduleBatch.prepare_for_extend

    def prepare_prompts(*args: Any, **kwargs: Any) -> Any:
        clock.note(admits=True)
        return prepare(*args, **kwargs)

    ScheduleBatch.prepare_for_extend = prepare_prompts
    for name in ("prepare_for_extend", "prepare_for_decode", "filter_batch", "merge_batch"):
        _wrap(ScheduleBatch, clock, "prepare", name)
    ForwardBatch.init_new = staticmethod(clock.timed("prepare", ForwardBatch.init_new))
    _wrap(DecodeCudaGraphRunner, clock, "prepare", "load_batch")


def _wrap_runner(runner: Any, clock: HostClock) -> None:
    import torch

    replay = torch.cuda.CUDAGraph.replay

    def replay_one(graph: Any) -> None:
        replay(graph)

    torch.cuda.CUDAGraph.replay = clock.timed("graphs", replay_one)
    _wrap(runner, clock, "sample", "sample")
    _wrap(runner.eager_runner, clock, "eager", "execute")
    backends = [runner.attn_backend]
    if hasattr(runner, "layer_groups"):
        backends += [runner.layer_groups.attention.cohort, runner.layer_groups.attention.decode]
    for backend in {type(backend) for backend in backends if backend is not None}:
        for name in ("", "_out_graph", "_in_graph"):
            _wrap(backend, clock, "metadata", "init_forward_metadata" + name)
        _wrap(backend, clock, "eager", "forward")


def _wrap_executor(clock: HostClock) -> None:
    from layered_sglang.executor.layer_range import LayerRangeModel
    from layered_sglang.executor.merged_graphs import MergedLayerGraphs

    run, run_graphs = LayerRangeModel.run, MergedLayerGraphs.run

    def run_eagerly(*args: Any, **kwargs: Any) -> Any:
        clock.note(eager=True)
        return run(*args, **kwargs)

    LayerRangeModel.run = clock.timed("eager", run_eagerly)
    MergedLayerGraphs.run = clock.timed("prepare", run_graphs)
