"""The iteration trace: one JSON line per iteration, who ran which layers when.

Fields: ``iteration`` (SGLang's forward count), ``time`` (``time.monotonic()`` at launch, seconds),
``kind`` (decode, prefill, merged, cohort; mixed in SGLang's own mixed chunks), ``decode`` (rids),
``cohort`` (rid, first prompt position, tokens), ``layers`` ([start, end) of the cohort; null when its
tokens run through all layers), ``samples`` (rids that get a token), ``decode_context`` (tokens that the
decode rows attend to), ``seconds`` (from the result before, or the launch, to its own result),
``predicted`` (the cost model's; null where none was asked). A line is written when the result is there.
"""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from layered_sglang.hooks.cohort import LayerGroupStep


def trace_file(path: str | None, tp_rank: int, dp_rank: int | None) -> str | None:
    """Where a scheduler writes its iterations, or ``None``.

    One rank of those that share a plan writes; a replica after the first (``--dp``) to ``PATH.dpN``.
    """
    if path is None or tp_rank != 0:
        return None
    return f"{path}.dp{dp_rank}" if dp_rank else path


class IterationTrace:
    """Appends to ``path``, or does nothing if it is ``None``. Line-buffered, so a reader may follow."""

    def __init__(self, path: str | None) -> None:
        self._file: IO[str] | None = open(path, "a", buffering=1) if path else None  # noqa: SIM115

    @property
    def enabled(self) -> bool:
        return self._file is not None

    def write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")


def describe_iteration(
    kind: str, batch: ScheduleBatch, step: LayerGroupStep | None
) -> dict[str, Any]:
    """The fields that say who runs which layers, taken at launch: later the batch has moved on."""
    extends = kind in ("prefill", "mixed")
    prefill = step.cohort.batch if step is not None else batch if extends else None
    decoding = batch.reqs if batch is not prefill else (batch.decoding_reqs or [])
    decode = [req.rid for req in decoding]
    rows = []
    sampled = list(decode)
    if prefill is not None:
        for req, start, length in zip(
            prefill.reqs, prefill.prefix_lens, prefill.extend_lens, strict=True
        ):
            if req in decoding:  # a decode row that joined a mixed chunk
                continue
            rows.append([req.rid, start, length])
            if (step is None or step.is_last) and req is not prefill.chunked_req:
                sampled.append(req.rid)
    layers = list(step.layers) if step is not None else None
    return {"decode": decode, "cohort": rows, "layers": layers, "samples": sampled}
