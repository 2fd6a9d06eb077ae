"""Iteration trace → rows to fit: what each iteration computed, and how long it took."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork

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
    """

    kind: str
    decode: DecodeWork
    cohort: CohortWork | None
    layers: int
    seconds: float

    def predict(self, model: CostModel) -> float:
        """Seconds by the model, as the planner would ask for them."""
        if self.cohort is None:
            return model.decode(self.decode).seconds()
        if self.kind == "prefill":
            return model.prefill(self.cohort).seconds()
        return model.merged(self.decode, self.cohort).seconds(self.layers)


def read_rows(lines: Iterable[str], num_layers: int) -> list[Row]:
    """Rows of the trace's lines that were measured; mixed chunks and unfinished lines are left out."""
    rows = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the server is writing it
        row = _row(record, num_layers)
        if row is not None:
            rows.append(row)
    return rows


def _row(record: dict[str, Any], num_layers: int) -> Row | None:
    kind, seconds = record["kind"], record.get("seconds")
    if kind not in ("decode", "merged", "cohort", "prefill") or not seconds or seconds <= 0:
        return None
    decode = DecodeWork(len(record["decode"]), record.get("decode_context") or 0)
    cohort, layers = None, 0
    if kind != "decode":
        if not record["cohort"]:
            return None
        cohort = CohortWork(0, 0.0, 0)
        for _, start, tokens in record["cohort"]:
            cohort += CohortWork.of_prompt(tokens, start)
        start, end = record["layers"] or (0, num_layers)
        layers = end - start
    if kind == "prefill":
        decode = DecodeWork()
    return Row(kind, decode, cohort, layers, seconds)


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
