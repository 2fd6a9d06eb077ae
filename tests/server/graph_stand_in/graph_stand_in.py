"""A test's own SGLang plugin: layer graphs on the CPU, where a "graph" calls its function again.

Everything around the graphs is the real code: static inputs, padding, what is carried from layer to
layer and from iteration to iteration. What only a GPU shows is left out: recording and memory pools.
One character a replay goes to ``GRAPH_STAND_IN_FILE``: d (a layer of decode), m (of merged rows),
w (the whole decode step beside a cohort).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

BATCH_SIZES = [1, 2, 4, 8]


class Replay:
    def __init__(self, kind: str, run: Callable[[], Any]) -> None:
        self.kind, self.run = kind, run
        self.output = run()

    def replay(self) -> None:
        with open(os.environ["GRAPH_STAND_IN_FILE"], "a") as out:
            out.write(self.kind)
        new = self.run()
        if new is not None:  # logits: a graph writes to where it wrote when it was captured
            self.output.next_token_logits.copy_(new.next_token_logits)


class StandInBackend:
    """``BaseCudaGraphBackend`` of replays."""

    def __init__(self) -> None:
        self._graphs: dict[Any, Replay] = {}
        self._outputs: dict[Any, Any] = {}

    @contextmanager
    def capture_session(self, _stream: Any):
        yield

    def capture_one(self, key: Any, run: Callable[[], Any], **_kwargs: Any) -> None:
        self._graphs[key] = Replay("d" if key.variant_label else "w", run)
        self._outputs[key] = self._graphs[key].output

    def replay(self, key: Any, _batch: Any) -> Any:
        self._graphs[key].replay()
        return self._outputs[key]


@contextmanager
def _no_capture(*_args: Any, **_kwargs: Any):
    yield SimpleNamespace(stream=None)


def _lanes() -> Any:
    """Two lanes of streams that are none, if the test wants decode and cohorts side by side."""
    from layered_sglang.executor.green_contexts import Lane, Partitioning

    if "GRAPH_STAND_IN_SIDE_BY_SIDE" not in os.environ:
        return None
    return Partitioning(Lane(torch.cpu.Stream(), None), Lane(torch.cpu.Stream(), None), [])


def _plan_as_triton_does(attention: Any) -> None:
    """Let what the backend of decode rows holds be of the batch planned last, by size: a batch that is
    loaded for replay leaves it, as triton's and flashinfer's backends do. Attention checks it."""
    plan, decode = attention.init_forward_metadata, attention.forward_decode

    def plan_eagerly(rows: Any) -> None:
        plan(rows)
        attention.forward_metadata = rows.batch_size

    def plan_graph(rows: Any, in_capture: bool = False) -> None:
        if in_capture:
            attention.forward_metadata = rows.batch_size

    def attend(q: Any, k: Any, v: Any, layer: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        assert attention.forward_metadata == rows.batch_size, "planned for another batch"
        return decode(q, k, v, layer, rows, *args, **kwargs)

    attention.forward_metadata = None
    attention.init_forward_metadata = plan_eagerly
    attention.init_forward_metadata_out_graph = plan_graph
    attention.forward_decode = attend


def _capture_on_the_cpu(_result: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    """After ``ModelRunner.init_cuda_graphs``, which captured nothing on the CPU."""
    from layered_sglang.executor import decode_graphs, merged_graphs, side_by_side
    from sglang.srt.model_executor.runner import decode_cuda_graph_runner as sglangs

    sglangs.graph_capture = merged_graphs.graph_capture = _no_capture
    side_by_side.graph_capture = _no_capture
    sglangs.resolve_decode_backend = lambda _runner: StandInBackend()
    sglangs.get_batch_sizes_to_capture = lambda *_args: (BATCH_SIZES, [])
    merged_graphs.MergedLayerGraphs._capture_one = staticmethod(
        lambda run, *_args: Replay("m", run)
    )
    attention = runner.layer_groups.attention.decode
    attention = getattr(attention, "full_attn_backend", attention)  # linear attention has its own
    type(attention).init_cuda_graph_state = lambda *_args: None
    type(attention).get_cuda_graph_seq_len_fill_value = lambda _self: 1
    _plan_as_triton_does(attention)
    assert decode_graphs.DecodeGraphRows.__mro__[1] is sglangs.DecodeCudaGraphRunner
    with torch.no_grad():
        runner.graphs_text = runner.layer_groups.capture_graphs(runner, 1024, _lanes())
        runner.layer_groups.load_kernels(300, runner.device)


def activate() -> None:
    """Entry point ``sglang.srt.plugins``; does nothing outside scheduler processes of the test."""
    from layered_sglang.hooks import registration

    if "GRAPH_STAND_IN_FILE" not in os.environ or not registration.in_scheduler_process:
        return
    HookRegistry.register(
        "sglang.srt.model_executor.model_runner.ModelRunner.init_cuda_graphs",
        _capture_on_the_cpu,
        HookType.AFTER,
    )
