"""Iterations as the server's trace file tells them (``telemetry/trace.py`` writes it)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Iteration:
    """One iteration.

    Attributes:
        start: ``time.monotonic()`` of the machine, at launch.
        decode: rids that decode through all layers.
        prompts: rids whose prompt tokens run in it.
        layers: [start, end) that the prompts run through; None is all.
        samples: rids that get a token.
    """

    start: float
    decode: tuple[str, ...]
    prompts: tuple[str, ...]
    layers: tuple[int, int] | None
    samples: tuple[str, ...]


def parse_line(line: str) -> Iteration:
    """One line of the trace file."""
    record = json.loads(line)
    layers = record["layers"]
    return Iteration(
        start=record["time"],
        decode=tuple(record["decode"]),
        prompts=tuple(rid for rid, _start, _tokens in record["cohort"]),
        layers=None if layers is None else (layers[0], layers[1]),
        samples=tuple(record["samples"]),
    )


class TraceFollower:
    """Reads a trace file that is being written, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_iterations(self) -> list[Iteration]:
        """What was written since the last call."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._offset += end
        return [parse_line(line) for line in text[:end].decode().splitlines()]
