"""Iteration trace → rows to fit: what each iteration computed, and how long it took.

NOTE: with overlap, the trace's ``seconds`` are the time between two results, and the host launches the
next iteration before it looks for this one's result. They are therefore the larger of this iteration's
GPU time and the *next* one's host time. Where the host took longer, the next one's result comes after
what is left of its GPU time: as much earlier as this one's was late. On a CPU, where a launch is the
whole computation, they are the next one's time altogether.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork, IterationTime

#: Rows of like iterations that are kept: thousands of the same decode iteration teach no more.
PER_BIN = 24


@dataclass(frozen=True)
class Row:
    """A measured iteration.

    Attributes:
        kind: of the trace: decode, merged, cohort or prefill.
        decode: its decode rows.
        cohort: its prompt rows; ``None`` in kind decode.
        layers: layers that the prompt rows ran through.
        seconds: measured.
        first, last: the layers are the first, or the last, that its prompt rows run through.
        after: the iteration that was launched before this one's result was there, if one was.
        before: the iteration whose result was there only after this one's launch, if it was.
        launch: seconds of the host, from the result before it to the end of its launch; 0: not told.
    """

    kind: str
    decode: DecodeWork
    cohort: CohortWork | None
    layers: int
    seconds: float
    first: bool = False
    last: bool = False
    after: Row | None = None
    before: Row | None = None
    launch: float = 0.0

    def line(self, model: CostModel) -> tuple[IterationTime, int]:
        """The model's line, and where on it this iteration is."""
        if self.cohort is None:
            return model.decode(self.decode), 0
        if self.kind == "prefill":
            return model.prefill(self.cohort), 0
        line = model.merged(self.decode, self.cohort)
        return line.at(self.first, self.last), self.layers

    def predict(self, model: CostModel) -> float:
        """What ``seconds`` should be by the model; see the module's note."""
        line, layers = self.line(model)
        if self.after is None:
            return line.seconds(layers)
        following, its_layers = self.after.line(model)
        late = 0.0
        if self.before is not None:
            earlier, earlier_layers = self.before.line(model)
            late = line.host_seconds(layers) - earlier.device_seconds(earlier_layers)
        return max(line.device_seconds(layers) - max(0.0, late), following.host_seconds(its_layers))


def read_rows(
    lines: Iterable[str], num_layers: int, overlap: bool = False, synchronous: bool = False
) -> list[Row]:
    """Rows of the trace's lines that were measured; mixed chunks and unfinished lines are left out.

    Args:
        lines: of the trace, in its order.
        num_layers: of the model.
        overlap: the server's overlap scheduler was on.
        synchronous: a launch returns when all is computed, as on a CPU.
    """
    found: list[tuple[Row, bool]] = []  # each, and whether it was launched before the result before
    result = -math.inf
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the server is writing it
        row = _row(record, num_layers)
        launched = record.get("time", math.inf)
        if row is not None:
            found.append((row, launched < result))
        result = max(result, launched) + (record.get("seconds") or 0.0)
    if not overlap:
        return [row for row, _ in found]
    rows = []
    earlier: Row | None = None
    for (row, follows), (following, adjacent) in pairwise(found):
        before, earlier = earlier, row
        if not (follows and adjacent):
            continue  # nobody was running before or after: another time was measured
        if synchronous:
            rows.append(dataclasses.replace(following, seconds=row.seconds))
        else:
            rows.append(dataclasses.replace(row, after=following, before=before))
    return rows


def _row(record: dict[str, Any], num_layers: int) -> Row | None:
    kind, seconds = record["kind"], record.get("seconds")
    if kind not in ("decode", "merged", "cohort", "prefill") or not seconds or seconds <= 0:
        return None
    decode = DecodeWork(len(record["decode"]), record.get("decode_context") or 0)
    cohort, layers, first, last = None, 0, False, False
    if kind != "decode":
        if not record["cohort"]:
            return None
        cohort = CohortWork(0, 0.0, 0)
        for _, prefix, tokens in record["cohort"]:
            cohort += CohortWork.of_prompt(tokens, prefix)
        start, end = record["layers"] or (0, num_layers)
        layers, first, last = end - start, start == 0, end == num_layers
    if kind == "prefill":
        decode = DecodeWork()
    launch = record.get("launch") or 0.0
    return Row(kind, decode, cohort, layers, seconds, first, last, launch=launch)


def thin(rows: list[Row], seed: int = 0) -> list[Row]:
    """At most :data:`PER_BIN` rows of iterations that are alike, drawn at random."""
    bins: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        tokens = row.cohort.tokens if row.cohort is not None else 0
        key = (
            row.kind,
            row.decode.requests,
            (row.decode.context // 64).bit_length(),
            tokens.bit_length(),
            row.layers,
        )
        bins[key].append(row)
    rng = random.Random(seed)
    kept: list[Row] = []
    for key in sorted(bins):
        alike = bins[key]
        kept += rng.sample(alike, min(PER_BIN, len(alike)))
    return kept


def split(rows: list[Row], share: float = 0.2, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Rows to fit, and ``share`` of them to judge the fit by."""
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    cut = round(len(rows) * share)
    return shuffled[cut:], shuffled[:cut]
