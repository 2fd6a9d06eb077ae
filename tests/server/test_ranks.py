"""Several ranks: one plan for all, however slow one of them is, and stock SGLang's answers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from half_way import (
    ALL,
    LONG,
    POOL,
    SHORT,
    STREAM,
    check,
    fill_the_pool,
    run,
    settled,
)
from harness import Server, free_port, generate_all, layered_command, running, stock_command
from layered_sglang.model_zoo import find_preset, write_model
from nodes import two_nodes
from timed import TRIES

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
PROBE = Path(__file__).parent / "rank_probe"
#: Ranks sum in another order than one rank does: log probabilities of -12 differ by more than 1e-4.
TOLERANCE = 1e-3
ONE_LAYER = ("--num-layer-groups", "8", "--layered-max-prefill-tokens", "1000")


@dataclass
class Ranks:
    """A server of several ranks, and the folder where each writes its plan down."""

    server: Server
    plans: Path
    count: int

    def expect_one_plan(self) -> list[dict]:
        """... and return it."""
        self.server.wait_idle()
        plans = [
            [json.loads(line) for line in (self.plans / f"rank{i}.jsonl").read_text().splitlines()]
            for i in range(self.count)
        ]
        # An idle rank 0 may be an iteration of its own health check ahead of what is written.
        shortest = min(map(len, plans))
        assert shortest > 20 and max(map(len, plans)) <= shortest + 1
        for plan in plans[1:]:
            assert plan[:shortest] == plans[0][:shortest], "ranks planned differently"
        return plans[0]


def probing(folder: Path, slow: int | None, fused: bool = False) -> dict[str, str]:
    return {
        "RANK_PROBE": str(folder),
        "SLOW_RANK": "" if slow is None else str(slow),
        "FUSED_SUMS": "1" if fused else "",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROBE), os.environ.get("PYTHONPATH")])),
    }


@contextmanager
def serving(
    model: Path,
    folder: Path,
    count: int,
    *flags: str,
    slow: int | None = None,
    fused: bool = False,
) -> Iterator[Ranks]:
    flags = (*flags, "--tp", str(count), "--enable-metrics")
    command = layered_command(model, free_port(), *flags)
    with running(command, folder / "server.log", probing(folder, slow, fused)) as server:
        yield Ranks(server, folder, count)


@pytest.fixture(scope="module")
def wanted(ask_stock):
    """Stock SGLang's answers, of one rank."""
    answers = ask_stock(ALL)
    return {request: answer for request, (answer,) in zip(ALL, answers, strict=True)}


def expect_stock_answers(ranks: Ranks, wanted) -> None:
    """Prompts that are layered beside a stream."""
    later = [(20, LONG[0], "long"), (21, SHORT, "short"), (22, LONG[2], "longer")]
    for _ in range(TRIES):
        before = settled(ranks.server)["iterations:merged"]
        answers, _ = run(ranks.server, STREAM, *later)
        check(answers, wanted, TOLERANCE)
        if settled(ranks.server)["iterations:merged"] >= before + 8:
            return
    pytest.fail("nothing was layered")


def test_four_ranks_of_which_one_is_slow(tmp_path):
    """By a target, so that what the iterations take decides the plan. Each rank has a KV head and 32
    columns of an expert: without a GPU SGLang pads models that have less, and loads them wrongly."""
    tiny = find_preset("tiny")
    sizes = {"num_key_value_heads": 4, "moe_intermediate_size": 128}
    wider = replace(tiny, config={**tiny.config, **sizes})
    model = write_model(wider, tmp_path / "model").directory
    asked = [STREAM, LONG[0], SHORT, LONG[2]]
    with running(stock_command(model, free_port()), tmp_path / "stock.log") as server:
        answers = asyncio.run(generate_all(server, asked))
    wanted = {request: answer for request, (answer,) in zip(asked, answers, strict=True)}
    flags = ("--itl-slo-ms", "4", "--layered-max-prefill-tokens", "1000")
    with serving(model, tmp_path, 4, *flags, slow=3) as ranks:
        expect_stock_answers(ranks, wanted)
        plan = ranks.expect_one_plan()
    assert any(step["mode"] == "DECODE" and step["layers"] for step in plan)


@pytest.mark.parametrize("preset", ["tiny-gpt-oss", "tiny-deepseek-v3"])
def test_sums_over_ranks_that_wait_for_the_next_layers_norm(
    preset, make_model, ask_stock, tmp_path
):
    """The last layer of a layer group does not leave its sum to the next one, an iteration later."""
    asked = [STREAM, LONG[0], SHORT, LONG[2]]
    answers = ask_stock(asked, model=preset)
    wanted = {request: answer for request, (answer,) in zip(asked, answers, strict=True)}
    with serving(make_model(preset), tmp_path, 2, *ONE_LAYER, fused=True) as ranks:
        expect_stock_answers(ranks, wanted)
        assert ranks.expect_one_plan()[-1]["fused_sums"] > 100


def test_expert_parallel_ranks(make_model, tmp_path, wanted):
    with serving(make_model(), tmp_path, 2, *ONE_LAYER, "--ep", "2") as ranks:
        expect_stock_answers(ranks, wanted)
        ranks.expect_one_plan()


def test_two_nodes(make_model, tmp_path, wanted):
    flags = (*ONE_LAYER, "--tp", "2", "--enable-metrics")
    commands = [layered_command(make_model(), free_port(), *flags) for _ in range(2)]
    with two_nodes(commands, tmp_path, probing(tmp_path, None)) as server:
        ranks = Ranks(server, tmp_path, 2)
        expect_stock_answers(ranks, wanted)
        ranks.expect_one_plan()


@pytest.fixture(scope="module")
def two_ranks(make_model, tmp_path_factory):
    """One layer an iteration, a pool that growing answers outgrow, and a second rank that is slow."""
    flags = ("--max-total-tokens", str(POOL), "--schedule-conservativeness", "0.01")
    flags += ("--load-snapshot-publish-interval", "1")
    folder = tmp_path_factory.mktemp("two-ranks")
    with serving(make_model(), folder, 2, *ONE_LAYER, *flags, slow=1) as ranks:
        yield ranks


def test_an_abort_between_two_layer_groups(two_ranks, wanted):
    server = two_ranks.server
    before = settled(server)["aborted_cohorts"]
    for attempt in range(8):
        answers, _ = run(
            server,
            STREAM,
            (20, LONG[0], f"l{attempt}"),
            actions=[(24 + attempt, "/abort_request", {"rid": f"l{attempt}"})],
        )
        check({STREAM: answers[STREAM]}, wanted, TOLERANCE)
        if settled(server)["aborted_cohorts"] > before:
            break
    else:
        pytest.fail("no cohort was dropped")
    two_ranks.expect_one_plan()


def test_a_full_pool_between_two_layer_groups(two_ranks, wanted):
    server = two_ranks.server
    before = settled(server)["restarted_cohorts"]
    for left in (20, 45, 60):
        check(fill_the_pool(server, left), wanted, TOLERANCE)
        if settled(server)["restarted_cohorts"] > before:
            break
    else:
        pytest.fail("no cohort was restarted")
    two_ranks.expect_one_plan()
