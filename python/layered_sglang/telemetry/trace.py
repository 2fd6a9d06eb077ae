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
from typing import IO, Any


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
