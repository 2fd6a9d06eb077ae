"""benchmarks/kernel/overlapped_execution.py: the ways of running compute the same; the verdict."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "kernel"))
from overlapped_execution import Combination, check, layers_for
from overlapped_table import Cell, ineffective, verdict
from proxy_layers import TINY, Model


@pytest.fixture
def combination() -> Combination:
    torch.manual_seed(1)
    model = Model(TINY, "cpu", copies=2)
    decode, cohort = model.decode_part(3, context=16, copies=2), model.prompt_part(16, longest=8)
    return Combination(model, decode, cohort, layers=2)


def test_merged_rows_compute_what_they_compute_apart(combination: Combination) -> None:
    apart = combination.run_in_turn()
    assert apart["cohort"].shape == (16, 64) and apart["logits"].shape == (3, 128)
    check("merged", combination.run_merged(), apart)


def test_wrong_outputs_are_found(combination: Combination) -> None:
    apart = combination.run_in_turn()
    swapped = {**apart, "cohort": apart["cohort"].flip(0)}
    with pytest.raises(RuntimeError, match="merged: cohort is wrong"):
        check("merged", swapped, apart)
    unwritten = {"decode": torch.full_like(apart["decode"], float("nan"))}
    with pytest.raises(RuntimeError, match="streams: decode is wrong"):
        check("streams", unwritten, apart)


def test_prompts_attend_to_themselves_only(combination: Combination) -> None:
    """The second prompt's rows do not change with the first prompt's."""
    before = combination.run_cohort()["cohort"]
    combination.cohort.x[:8].mul_(-1)
    after = combination.run_cohort()["cohort"]
    assert not torch.allclose(after[:8], before[:8])
    torch.testing.assert_close(after[8:], before[8:], rtol=0.05, atol=0.05)


def test_prompts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens do not divide into 3 equal prompts"):
        Model(TINY, "cpu", copies=1).prompt_part(17, longest=8)


@pytest.mark.parametrize(
    ("decode_ms", "layer_ms", "layers"), [(9.0, 1.0, 9), (9.0, 0.1, 48), (1.0, 4.0, 1)]
)
def test_a_cohorts_layers_take_about_a_decodes_time(decode_ms, layer_ms, layers) -> None:
    assert layers_for(decode_ms, layer_ms, 48) == layers


def cell(batch: int, merged: float, split: float, alone: float = 20.0) -> Cell:
    samples = {"merged": [merged] * 3, "32 + 100 SMs": [split] * 3, "64 + 68 SMs": [99.0] * 3}
    times = {"streams": (5.0, 5.0), "32 + 100 SMs": (alone, alone)}
    return Cell(batch, 2048, 3, samples, samples, times, [])


def test_verdict_counts_what_beats_merged_by_the_gate() -> None:
    cells = [cell(1, 10.0, 9.6), cell(8, 10.0, 9.5), cell(32, 10.0, 12.0)]
    assert [c.best_partitioning() for c in cells] == ["32 + 100 SMs"] * 3
    text = verdict(cells)
    assert "beats merged by 5% or more in 1 of 3 combinations" in text
    assert "+4.0% in the median, +5.0% at most (decode 8, cohort 2048)" in text
    assert "NOT PARTITIONED" not in text
    assert verdict([]) == "verdict: no partitioning was measured"


def test_partitions_without_effect_are_told() -> None:
    without = cell(1, 10.0, 9.0, alone=5.1)
    assert ineffective(without) == ["32 + 100 SMs"]
    assert "NOT PARTITIONED: alone, work on 32 + 100 SMs" in verdict([without])
