"""benchmarks/serving: distances of log-probabilities, and when a comparison is void."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving"))
from answer_distance import VoidComparison, distance


def answers(values: list[float | None]) -> list[SimpleNamespace]:
    """One answer: a prompt of these log-probabilities, whose first token has none, and one token."""
    *prompt, answered = values
    return [SimpleNamespace(prompt_logprobs=[None, *prompt], logprobs=[answered, -9.0], tokens=[7])]


def normal(mean: float, deviation: float, count: int = 50) -> list[float]:
    rng = random.Random(1)
    return [rng.gauss(mean, deviation) for _ in range(count)]


def test_distances_are_over_the_spread() -> None:
    want = [-1.0, -3.0, -1.0, -3.0]
    got = [-1.1, -3.1, -0.9, -2.9]
    d = distance(answers(got), answers(want), same_kernels=False)
    assert (d["logprobs"], d["prompts"], d["same_first_token"]) == (4, 1, 1)
    assert d["spread"] == 1.0
    assert d["mean"] == pytest.approx(0.1) and d["max"] == pytest.approx(0.1)
    assert d["rms_over_spread"] == pytest.approx(0.1)


def test_flat_log_probabilities_are_void() -> None:
    """What SGLang's dummy weights give: equal but for some steps of float32."""
    flat = normal(-11.93, 8e-6)
    with pytest.raises(VoidComparison, match=r"^all 50 log-probabilities are about -11\.93") as e:
        distance(answers(flat), answers(flat), same_kernels=True)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("at", [0, -1])
def test_values_that_are_not_finite_are_void(value: float | None, at: int) -> None:
    good, bad = normal(-11, 1), [*normal(-11, 1)]
    bad[at] = value
    for got, want in ((bad, good), (good, bad)):
        with pytest.raises(VoidComparison, match=r"^1 of 50 log-probabilities are NaN"):
            distance(answers(got), answers(want), same_kernels=True)


def test_equal_bits_are_void_under_other_kernels_only() -> None:
    values = normal(-11, 1)
    assert distance(answers(values), answers(values), same_kernels=True)["max"] == 0
    with pytest.raises(
        VoidComparison, match=r"^all 50 log-probabilities are equal to the last bit"
    ):
        distance(answers(values), answers(values), same_kernels=False)


def test_no_log_probabilities_are_void() -> None:
    with pytest.raises(VoidComparison, match="hold no log-probabilities"):
        distance([], [], same_kernels=True)
