"""Counts the experts whose weights each layer loads, without waiting for the GPU.

A layer loads an expert's weights once per iteration if any row is routed there. Each routed layer
marks its experts in a row of a mask (two small kernels, captured with the CUDA graphs); at the end of
an iteration the marks are added to the total of the iteration's kind and cleared, on the same stream.
A thread copies the totals now and then. Rows that only fill a CUDA graph's batch size count: their
experts are loaded, too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

#: Iterations that only decode, and those with prompt tokens in some layer.
KINDS = ("decode", "prompts")
WRITE_SECONDS = 0.25


class ExpertLoads:
    """Totals since the start of the server.

    Args:
        routers: SGLang's TopK modules in the order of their layers.
        num_experts: of a layer, on this GPU.
        bytes_per_expert: of its gate, up and down weights on this GPU.
        path: file that gets a JSON line (``time``, ``bytes_per_expert``, ``loads`` and ``iterations``
            by kind) whenever the totals have changed.
        clock: seconds, for the lines.
    """

    def __init__(
        self,
        routers: list[torch.nn.Module],
        num_experts: int,
        bytes_per_expert: int,
        path: str,
        device: torch.device,
        clock: Callable[[], float],
    ) -> None:
        self._rows = {id(router): i for i, router in enumerate(routers)}
        # The column behind the last expert takes the id −1 of rows without one.
        self._marks = torch.zeros(len(routers), num_experts + 1, dtype=torch.int8, device=device)
        self._totals = torch.zeros(len(KINDS), dtype=torch.int64, device=device)
        self._iterations = [0] * len(KINDS)
        self._bytes = bytes_per_expert
        self._path = path
        self._clock = clock
        self._kind: int | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def of_model(
        cls, model: torch.nn.Module, path: str, clock: Callable[[], float]
    ) -> ExpertLoads | None:
        """For the MoE layers of a loaded model; None if it has none."""
        routers = [m for m in model.modules() if type(m).__name__ == "TopK"]
        experts = [m for m in model.modules() if hasattr(m, "w13_weight")]
        if not routers or not experts:
            return None
        w13, w2 = experts[0].w13_weight, experts[0].w2_weight
        assert isinstance(w13, torch.Tensor) and isinstance(w2, torch.Tensor)
        num_experts = w13.shape[0]
        return cls(
            routers, num_experts, (w13.nbytes + w2.nbytes) // num_experts, path, w13.device, clock
        )

    def routed(self, router: Any, output: Any) -> None:
        """A layer's rows were routed; ``output`` is SGLang's TopKOutput."""
        row = self._rows.get(id(router))
        if row is None:
            return
        ids = getattr(output, "topk_ids", None)
        if ids is not None:
            self._marks[row].index_fill_(0, ids.reshape(-1).long(), 1)
            return
        routing = getattr(output, "routing_data", None)
        if routing is not None:  # triton_kernels': rows per expert
            rows = routing.expt_hist
            self._marks[row, : rows.shape[0]].logical_or_(rows > 0)

    def iteration_begins(self, kind: str) -> None:
        """The scheduler launches an iteration of this kind."""
        self._kind = KINDS.index(kind)

    def iteration_ends(self) -> None:
        """Its forward pass is on the current stream."""
        kind, self._kind = self._kind, None
        if kind is not None:
            self._totals[kind] += self._marks[:, :-1].sum()
            self._iterations[kind] += 1
        self._marks.zero_()
        if kind is not None and self._thread is None:
            # Not before: another thread's copies would break the capture of CUDA graphs.
            self._thread = threading.Thread(target=self._write_for_ever, daemon=True)
            self._thread.start()

    def _write_for_ever(self) -> None:
        done = threading.Event()
        last: list[int] = []
        cuda = self._totals.is_cuda
        stream = (
            torch.cuda.stream(torch.cuda.Stream(self._totals.device)) if cuda else nullcontext()
        )
        with stream, open(self._path, "a", buffering=1) as file:
            while not done.wait(WRITE_SECONDS):
                totals = self._totals.tolist()
                if totals != last:
                    last = totals
                    file.write(json.dumps(self._line(totals)) + "\n")

    def _line(self, totals: list[int]) -> dict[str, Any]:
        return {
            "time": self._clock(),
            "bytes_per_expert": self._bytes,
            "loads": dict(zip(KINDS, totals, strict=True)),
            "iterations": dict(zip(KINDS, self._iterations, strict=True)),
        }
