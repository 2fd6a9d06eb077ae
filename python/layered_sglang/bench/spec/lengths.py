"""Token counts of prompts and answers: fixed, drawn, mixed, or columns of a CSV trace."""

from __future__ import annotations

import csv
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from layered_sglang.bench.spec.located import Located

#: The 90th percentile of the standard normal distribution.
Z90 = 1.2815515655446004


class Length(Protocol):
    """Draws a number of tokens, at least 1."""

    def draw(self, rng: random.Random) -> int: ...


@dataclass(frozen=True)
class Fixed:
    """Always the same number of tokens."""

    tokens: int

    def draw(self, rng: random.Random) -> int:
        return self.tokens


@dataclass(frozen=True)
class Uniform:
    """Every number of tokens in [low, high] alike."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True)
class LogNormal:
    """exp of a normal distribution, cut to [low, high].

    Attributes:
        median: tokens; half of the draws are below, as long as the cut is not.
        p90: tokens that nine of ten draws do not exceed.
        low, high: draws beyond are set to these.
    """

    median: float
    p90: float
    low: int = 1
    high: int = 1_000_000

    def draw(self, rng: random.Random) -> int:
        sigma = math.log(self.p90 / self.median) / Z90
        tokens = round(math.exp(rng.gauss(math.log(self.median), sigma)))
        return max(self.low, min(self.high, tokens))


@dataclass(frozen=True)
class Mixture:
    """One of several lengths, each with its share.

    Attributes:
        parts: (share, length); shares need not add up to 1.
    """

    parts: tuple[tuple[float, Length], ...]

    def draw(self, rng: random.Random) -> int:
        (length,) = rng.choices(
            [length for _, length in self.parts], [share for share, _ in self.parts]
        )
        return length.draw(rng)


def read_length(at: Located) -> Length:
    """``512``, ``{uniform: [a, b]}``, ``{lognormal: {median, p90, min, max}}`` or
    ``{mixture: [[share, length], …]}``."""
    if isinstance(at.value(), int):
        return Fixed(at.count())
    kind, inner = at.one_of(("fixed", "uniform", "lognormal", "mixture"))
    if kind == "fixed":
        return Fixed(inner.count())
    if kind == "mixture":
        return Mixture(tuple(_part(element) for element in inner.elements()))
    if kind == "uniform":
        bounds = [element.count() for element in inner.elements()]
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise inner.error(f"expected [least, most], got {bounds}")
        return Uniform(*bounds)
    length = LogNormal(
        inner.required("median").positive(),
        inner.required("p90").positive(),
        inner.get("min", Located.count, LogNormal.low),
        inner.get("max", Located.count, LogNormal.high),
    )
    inner.finish()
    if length.p90 < length.median:
        raise inner.error(f"p90 ({length.p90:g}) is below the median ({length.median:g})")
    if length.low > length.high:
        raise inner.error(f"min ({length.low}) is above max ({length.high})")
    return length


def _part(at: Located) -> tuple[float, Length]:
    pair = at.elements()
    if len(pair) != 2:
        raise at.error("expected [share, length]")
    return pair[0].positive(), read_length(pair[1])


@dataclass(frozen=True)
class Trace:
    """Rows of a CSV file.

    Attributes:
        lengths: (prompt tokens, answer tokens) of each row.
        arrivals: seconds after the first row, or empty where no column was named.
    """

    lengths: tuple[tuple[int, int], ...]
    arrivals: tuple[float, ...]


#: Column names that public traces use; a scenario can name others.
PROMPT_COLUMN = "num_prefill_tokens"
OUTPUT_COLUMN = "num_decode_tokens"
ARRIVAL_COLUMN = "arrived_at"


def read_trace(at: Located) -> Trace:
    """``{file, prompt_column, output_column, arrival_column}``; rows without tokens are left out."""
    file = at.required("file")
    names = {
        "prompt": at.get("prompt_column", Located.text, PROMPT_COLUMN),
        "output": at.get("output_column", Located.text, OUTPUT_COLUMN),
        "arrival": at.get("arrival_column", Located.text, ARRIVAL_COLUMN),
    }
    most = at.get("max_prompt_tokens", Located.count, 1_000_000)
    at.finish()
    path = Path(file.text()).expanduser()
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            for name in (names["prompt"], names["output"]):
                if name not in columns:
                    raise at.error(f"{path} has no column {name!r}; it has {', '.join(columns)}")
            rows = list(reader)
        if names["arrival"] in columns:
            rows.sort(key=lambda row: float(row[names["arrival"]]))
        lengths, arrivals = [], []
        for row in rows:
            prompt, output = int(float(row[names["prompt"]])), int(float(row[names["output"]]))
            if 0 < prompt <= most and output > 0:
                lengths.append((prompt, output))
                if names["arrival"] in columns:
                    arrivals.append(float(row[names["arrival"]]))
    except OSError as error:
        raise file.error(
            f"cannot read {path}: {error.strerror or error}; name the trace with --set {file.key}=PATH"
        ) from error
    except (TypeError, ValueError) as error:
        raise at.error(f"{path} holds no numbers in a named column: {error}") from error
    if not lengths:
        raise at.error(f"{path} has no row with tokens")
    first = min(arrivals, default=0.0)
    return Trace(tuple(lengths), tuple(t - first for t in arrivals))
