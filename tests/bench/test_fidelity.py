"""The simulator on measured cells: mean TTFT, P99 ITL, E2E and goodput near what an H200 served.

The cells are of one server start of each system, nothing of which was used to fit the model; see
benchmarks/results/2026-11-26-simulator-fidelity.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import layered_sglang
import numpy as np
import pytest
from layered_sglang.model_zoo import find_preset
from layered_sglang.scheduling import Coefficients, CostModel, Estimator, ModelShape
from layered_sglang.scheduling.correction import OnlineCorrection
from layered_sglang.scheduling.estimator import FITTED_LIMIT
from layered_sglang.scheduling.graph_sizes import fine_sizes
from layered_sglang.scheduling.profile import CostProfile
from layered_sglang.simulator.run import Setup
from layered_sglang.simulator.stock import StockWorld
from layered_sglang.simulator.systems import System
from layered_sglang.simulator.traffic import Traffic

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving"))
from simulated import MAX_RUNNING, NORMAL, figures, repeated

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks/results/2026-11-26-h200-simulated-cells.json").read_text())
PROFILE = CostProfile.read(
    Path(layered_sglang.__file__).parent / "profiles" / "h200-qwen3-30b-a3b-fa3.json"
)
#: A mean or a P99 may be this far off, as a share; goodput by as many points.
NEAR = 0.12
#: What is farther off, and by how much: a few gaps of 64 ms, of chunks behind a prompt of 26,000 tokens.
FARTHER = {("arxiv 3/s mixed:2048", 1): 0.2}


def setup_of(cell: dict[str, Any], host: float = 1.0, clock: bool = True) -> Setup:
    """The cell's server; its host launches eager layers ``host`` times as long as measured."""
    shape = ModelShape.from_config(dict(find_preset("qwen3-30b-a3b").config), spread=PROFILE.spread)
    coefficients = Coefficients(**RECORD["host"])
    coefficients = dataclasses.replace(
        coefficients, host_eager_layer=host * coefficients.host_eager_layer
    )
    model = CostModel(
        shape,
        coefficients.at_clock(cell["clock"] if clock else 1.0),
        graph_rows=4096,
        prefill_graph_rows=cell["prefill_graph_rows"],
    )
    return Setup(
        model,
        cell["kv_tokens"],
        MAX_RUNNING,
        noise=NORMAL * PROFILE.quality["held_out"]["median_error"],
        host_noise=RECORD["host_spread"],
        largest_graph=cell["largest_graph"],
    )


def title_of(cell: dict[str, Any]) -> str:
    return f"{cell['traffic']} {cell['system']}"


def simulated(cell: dict[str, Any], setup: Setup) -> list[float]:
    arrival, prompt, output = (np.array(column) for column in RECORD["traffic"][cell["traffic"]])
    traffic = Traffic(arrival, prompt, output, np.full(len(arrival), -1))
    return figures(repeated(System.parse(cell["system"], 0), setup, traffic), RECORD["limits"])


def far_off(cell: dict[str, Any], setup: Setup) -> list[str]:
    """What of a cell is not near the measured."""
    told, title = simulated(cell, setup), title_of(cell)
    found = []
    for i, (name, here, seen) in enumerate(
        zip(("TTFT mean", "ITL P99", "E2E mean", "within"), told, cell["measured"], strict=True)
    ):
        off = (here - seen) / 100 if name == "within" else here / seen - 1
        if abs(off) > FARTHER.get((title, i), NEAR):
            found.append(f"{title}: {name} {here:.4g} for {seen:.4g} ({off:+.0%})")
    return found


STOCK = {title_of(c): c for c in RECORD["cells"] if c["system"].startswith(("mixed", "chunked"))}
LAYERED = [c for c in RECORD["cells"] if title_of(c) not in STOCK]


@pytest.mark.parametrize("title", STOCK)
def test_sglang_s_own_schedules_are_near_what_was_measured(title):
    assert far_off(STOCK[title], setup_of(STOCK[title])) == []


def test_layered_prefill_is_near_what_was_measured():
    """All cells of the server's start, whose planner learnt from one to the next."""
    start = setup_of(LAYERED[0]).model
    model = dataclasses.replace(
        start, coefficients=PROFILE.coefficients, decode_sizes=tuple(fine_sizes(64))
    )
    planner = Estimator(model, OnlineCorrection(FITTED_LIMIT))
    cells = [dataclasses.replace(setup_of(cell), estimator=planner) for cell in LAYERED]
    assert [far_off(cell, setup) for cell, setup in zip(LAYERED, cells, strict=True)] == (
        [[]] * len(LAYERED)
    )
    assert planner.correction.seen > 1000


def mean_context(world: StockWorld, decode, work, longest):
    """Attention of a mixed chunk as if all decode rows had the same context."""
    return TILES(world, decode, work, decode.context // max(1, decode.requests))


TILES = StockWorld._tiles


@pytest.mark.parametrize(
    ("title", "change"),
    [
        ("arxiv 2/s mixed:512", "no longest row"),
        ("arxiv 3/s mixed:2048", "host of another machine"),
        ("arxiv 5/s mixed:2048", "full clock"),
    ],
)
def test_each_part_of_the_model_is_needed(title, change, monkeypatch):
    if change == "no longest row":
        monkeypatch.setattr(StockWorld, "_tiles", mean_context)
    setup = setup_of(STOCK[title], 1.4 if "host" in change else 1.0, "clock" not in change)
    assert any("TTFT" in line for line in far_off(STOCK[title], setup))
