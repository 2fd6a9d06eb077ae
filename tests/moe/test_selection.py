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
#: Measured in bfloat16 and left out: the real model's experts have biases, which only MXFP4's take.
GPT_OSS = {ExpertSizes(32, 4, 2880, 2880 // tp) for tp in (1, 2, 4, 8)}


@pytest.mark.parametrize("known", KNOWN_FASTER, ids=lambda known: known.gpu)
def test_each_entry_names_results_of_its_gpu(known: Measurement) -> None:
    assert known.gpu in (RESULTS / known.results).read_text()


@pytest.mark.parametrize("known", TABLES, ids=lambda known: known.gpu)
def test_entries_are_at_most_three_per_cent_slower_at_each_measured_size(known) -> None:
    ratios: dict[ExpertSizes, dict[int, float]] = defaultdict(dict)
    with open((RESULTS / known.results).with_suffix(".csv"), newline="") as file:
        for row in csv.DictReader(file):
            if row["implementation"] == "sglang triton":
                sizes = ExpertSizes(*(int(row[x]) for x in ("experts", "topk", "hidden", "inter")))
                ratios[sizes][int(row["tokens"])] = float(row["ratio"])
    for sizes, at in ratios.items():
        if sizes in GPT_OSS:
            assert sizes not in known.sizes
            continue
        kept = known.sglang_keeps.get(sizes, range(0))
        ours = {tokens: ratio for tokens, ratio in at.items() if tokens not in kept}
        assert (sizes in known.sizes) == (min(ours.values()) >= 1 / 1.03), sizes
        if kept:
            assert kept.start - 1 in at and kept.stop in at, "what lies between two measured sizes"
            assert min(ratio for tokens, ratio in at.items() if tokens in kept) < 1 / 1.03
    assert known.sizes <= ratios.keys() and known.sglang_keeps.keys() <= known.sizes


def column(text: str, table: str, name: str) -> list[float]:
    """A column of the first Markdown table whose head begins with ``table``."""
    head, _, *rows = text[text.index(table) :].split("\n\n")[0].splitlines()
    place = [cell.strip() for cell in head.split("|")].index(name)
    return [float(row.split("|")[place]) for row in rows]


def test_mxfp4_experts_are_nowhere_slower_than_sglangs() -> None:
    """The table is of earlier kernels; another one of that page compares them with today's."""
    (known,) = [known for known in KNOWN_FASTER if known.weights == torch.uint8]
    text = (RESULTS / known.results).read_text()
    ratios = column(text, "| tokens | ours, ms |", "theirs / ours")
    assert len(ratios) == 8 and min(ratios) >= 1 / 1.03
    gained = column(text, "| tokens | before | now |", "before / now")
    assert len(gained) == 15 and min(gained) >= 1
    assert known.sizes == {ExpertSizes(32, 4, 2880, 2880)}


def test_the_tables_of_both_gpus_are_there() -> None:
    assert [known.gpu for known in TABLES] == ["NVIDIA H200", "NVIDIA H100 80GB HBM3"]


def test_another_gpu_is_another_measurement() -> None:
    qwen3, other = ExpertSizes(128, 8, 2048, 768), ExpertSizes(64, 8, 2048, 768)
    assert known_faster(qwen3, "NVIDIA H200") and known_faster(qwen3, "NVIDIA H100 80GB HBM3")
    assert not known_faster(other, "NVIDIA H200")
    assert not known_faster(qwen3, "NVIDIA H100 PCIe")


def test_another_format_is_another_measurement() -> None:
    qwen3 = ExpertSizes(128, 8, 2048, 768)
    assert known_faster(qwen3, "NVIDIA H200", torch.bfloat16)
    assert not known_faster(qwen3, "NVIDIA H200", torch.float8_e4m3fn)
    gpt_oss = ExpertSizes(32, 4, 2880, 2880)
    assert known_faster(gpt_oss, "NVIDIA H200", torch.uint8)
    assert not known_faster(gpt_oss, "NVIDIA H200", torch.bfloat16)
