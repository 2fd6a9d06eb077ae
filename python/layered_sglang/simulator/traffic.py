"""Who asks for what, and when: lengths from distributions or traces, arrivals of three kinds."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layered_sglang.simulator.errors import SimulationError

#: z of the 90th percentile of a normal distribution: log-normals are given by median and P90.
_Z90 = 1.2815515655446004
_COLUMNS = {
    "prompt": ("num_prefill_tokens", "prompt_tokens", "prompt", "input_tokens"),
    "output": ("num_decode_tokens", "output_tokens", "output", "generated_tokens"),
    "arrival": ("arrived_at", "arrival", "timestamp"),
}


@dataclass(frozen=True)
class Traffic:
    """Requests in order of arrival.

    Attributes:
        arrival: float64 [n], seconds.
        prompt: int64 [n], tokens, at least 1.
        output: int64 [n], tokens, at least 1.
        group: int64 [n], whose prompts share their first ``shared`` tokens; −1: nobody's.
        shared: length of the shared prefixes, tokens.
    """

    arrival: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    group: np.ndarray
    shared: int = 0

    def __len__(self) -> int:
        return len(self.arrival)

    def part(self, chosen: np.ndarray) -> Traffic:
        return Traffic(
            self.arrival[chosen],
            self.prompt[chosen],
            self.output[chosen],
            self.group[chosen],
            self.shared,
        )


def lengths(spec: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` lengths, int64, drawn from a distribution.

    ``spec`` is ``lognormal:MEDIAN,P90``, ``uniform:LOW,HIGH``, ``const:N``, or a mixture of them such as
    ``0.9*lognormal:300,800+0.1*const:16000``.

    Raises:
        SimulationError: one line that quotes the part it does not understand.
    """
    parts = []
    for text in spec.split("+"):
        weight, _, rest = text.rpartition("*")
        kind, _, arguments = rest.partition(":")
        try:
            share = float(weight) if weight else 1.0
            numbers = [float(number) for number in arguments.split(",")]
        except ValueError:
            share, numbers = -1.0, []
        wanted = {"lognormal": 2, "uniform": 2, "const": 1}.get(kind)
        good = share > 0 and len(numbers) == wanted and min(numbers) >= 1
        if not good or numbers != sorted(numbers):
            raise SimulationError(
                f"lengths {text!r} are none of lognormal:MEDIAN,P90, uniform:LOW,HIGH, const:N "
                "(at least 1, in ascending order), with WEIGHT* before them in a mixture"
            )
        parts.append((share, kind, numbers))
    shares = np.array([share for share, _, _ in parts])
    which = rng.choice(len(parts), size=count, p=shares / shares.sum())
    result = np.empty(count)
    for i, (_, kind, numbers) in enumerate(parts):
        mine = which == i
        if kind == "lognormal":
            sigma = math.log(numbers[1] / numbers[0]) / _Z90
            result[mine] = rng.lognormal(math.log(numbers[0]), sigma, mine.sum())
        else:
            result[mine] = rng.uniform(numbers[0], numbers[-1], mine.sum())
    return np.maximum(1, np.rint(result)).astype(np.int64)


def arrivals(spec: str, rate: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` arrival times, seconds: ``poisson``, or ``gamma:CV`` with gaps of that coefficient of
    variation (bursty above 1)."""
    kind, _, argument = spec.partition(":")
    if kind == "poisson" and not argument:
        return np.cumsum(rng.exponential(1 / rate, count))
    if kind == "gamma":
        try:
            cv = float(argument)
        except ValueError:
            cv = 0.0
        if cv > 0:
            return np.cumsum(rng.gamma(cv**-2, cv**2 / rate, count))
    raise SimulationError(f"arrivals {spec!r} are none of poisson, gamma:CV (CV > 0), replay")


def read_trace(path: Path) -> dict[str, np.ndarray]:
    """Columns ``prompt`` and ``output``, and ``arrival`` if there is one, of a CSV file.

    Raises:
        SimulationError: one line that names the file and the column or line.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            found = {
                key: next((name for name in known if name in names), None)
                for key, known in _COLUMNS.items()
            }
            for key in ("prompt", "output"):
                if found[key] is None:
                    raise SimulationError(
                        f"{path}: no column {_COLUMNS[key][0]} (or {', '.join(_COLUMNS[key][1:])})"
                    )
            columns: dict[str, list[float]] = {key: [] for key, name in found.items() if name}
            for row in reader:
                for key, values in columns.items():
                    text = row[found[key] or ""]
                    try:
                        values.append(float(text))
                    except (TypeError, ValueError):
                        raise SimulationError(
                            f"{path}, line {reader.line_num}: {found[key]} is {text!r}, "
                            "expected a number"
                        ) from None
    except OSError as error:
        raise SimulationError(f"{path}: {error.strerror}") from error
    if not columns["prompt"]:
        raise SimulationError(f"{path}: no requests in it")
    trace = {key: np.array(values) for key, values in columns.items()}
    for key in ("prompt", "output"):
        trace[key] = np.maximum(1, trace[key]).astype(np.int64)
    if "arrival" in trace:
        order = np.argsort(trace["arrival"], kind="stable")
        trace = {key: values[order] for key, values in trace.items()}
        trace["arrival"] -= trace["arrival"][0]
    return trace


def make_traffic(
    *,
    requests: int,
    rate: float | None,
    arrival: str,
    prompts: str,
    outputs: str,
    trace: Path | None = None,
    shared_prefix: tuple[int, int] | None = None,
    seed: int = 0,
) -> Traffic:
    """The traffic of a command line; the same arguments give the same traffic.

    ``trace`` takes the place of ``prompts`` and ``outputs``, repeated or cut to ``requests``;
    ``arrival="replay"`` takes its times too, scaled to ``rate`` if one is given.
    ``shared_prefix`` is (groups, tokens).
    """
    rng = np.random.default_rng(seed)
    if trace is not None:
        read = read_trace(trace)
        rows: np.ndarray = np.arange(requests) % len(read["prompt"])
        prompt, output = read["prompt"][rows], read["output"][rows]
    elif arrival == "replay":
        raise SimulationError("arrivals replay needs --trace FILE with a column arrived_at")
    else:
        prompt, output = lengths(prompts, requests, rng), lengths(outputs, requests, rng)
    if arrival == "replay":
        if "arrival" not in read:
            raise SimulationError(f"{trace}: no column arrived_at to replay")
        lap = read["arrival"][-1] + read["arrival"][-1] / max(1, len(read["arrival"]) - 1)
        times = read["arrival"][rows] + lap * (np.arange(requests) // len(read["arrival"]))
        if rate is not None and times[-1] > 0:
            times = times * ((requests - 1) / times[-1] / rate)
    elif rate is None:
        raise SimulationError(f"arrivals {arrival} need --rate REQUESTS_PER_SECOND")
    else:
        times = arrivals(arrival, rate, requests, rng)
    group: np.ndarray = np.full(requests, -1, dtype=np.int64)
    shared = 0
    if shared_prefix is not None:
        groups, shared = shared_prefix
        group = rng.integers(0, groups, requests)
        prompt = prompt + shared
    return Traffic(times, prompt, output, group, shared)
