"""KNOWN_FASTER holds what benchmarks/results measured, and nothing else."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from layered_sglang.moe.selection import KNOWN_FASTER, ExpertSizes, Measurement, known_faster

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
TABLES = [known for known in KNOWN_FASTER if (RESULTS / known.results).with_suffix(".csv").exists()]
#: Measured and left out: the real model's experts have biases, which the kernels do not take.
GPT_OSS = {ExpertSizes(32, 4, 2880, 2880 // tp) for tp in (1, 2, 4, 8)}


@pytest.mark.parametrize("known", KNOWN_FASTER, ids=lambda known: known.gpu)
def test_each_entry_names_results_of_its_gpu(known: Measurement) -> None:
    assert known.gpu in (RESULTS / known.results).read_text()


@pytest.mark.parametrize("known", TABLES, ids=lambda known: known.gpu)
def test_entries_are_at_most_three_per_cent_slower_at_each_measured_size(known) -> None:
    ratios: dict[ExpertSizes, dict[str, float]] = defaultdict(dict)
    with open((RESULTS / known.results).with_suffix(".csv"), newline="") as file:
        for row in csv.DictReader(file):
            if row["implementation"] == "sglang triton":
                sizes = ExpertSizes(*(int(row[x]) for x in ("experts", "topk", "hidden", "inter")))
                ratios[sizes][row["tokens"]] = float(row["ratio"])
    fast = {sizes for sizes, at in ratios.items() if min(at.values()) >= 1 / 1.03}
    assert known.sizes == fast - GPT_OSS


def test_the_table_of_the_h100_is_there() -> None:
    assert [known.gpu for known in TABLES] == ["NVIDIA H100 80GB HBM3"]


def test_another_gpu_is_another_measurement() -> None:
    qwen3, half = ExpertSizes(128, 8, 2048, 768), ExpertSizes(128, 8, 2048, 384)
    assert known_faster(qwen3, "NVIDIA H200") and known_faster(half, "NVIDIA H100 80GB HBM3")
    assert not known_faster(half, "NVIDIA H200")
    assert not known_faster(qwen3, "NVIDIA H100 PCIe")


def test_another_format_is_another_measurement() -> None:
    qwen3 = ExpertSizes(128, 8, 2048, 768)
    assert known_faster(qwen3, "NVIDIA H200", torch.bfloat16)
    assert not known_faster(qwen3, "NVIDIA H200", torch.float8_e4m3fn)
