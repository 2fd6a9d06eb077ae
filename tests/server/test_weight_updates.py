"""New weights while a prompt is half computed: its answer is that of the new weights alone."""

from __future__ import annotations

import asyncio

import pytest
from half_way import IGNORE_EOS, STREAM, prompt, run, settled
from harness import (
    Request,
    difference,
    free_port,
    generate_all,
    layered_command,
    running,
    stock_command,
)
from layered_sglang.model_zoo import find_preset, write_model

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

#: New ones for every attempt, so that none is in the radix cache of other weights.
PROMPTS = [Request(prompt(600 + i), 12, IGNORE_EOS, logprob_start=0) for i in range(12)]


@pytest.fixture(scope="module")
def models(make_model, ask_stock, tmp_path_factory):
    """Two models of one architecture, and stock SGLang's answers of each."""
    folder = tmp_path_factory.mktemp("weights")
    other = write_model(find_preset("tiny"), folder / "other", seed=1).directory
    with running(stock_command(other, free_port()), folder / "stock.log") as server:
        answers = asyncio.run(generate_all(server, PROMPTS))
    return [make_model(), other], [
        [answer for (answer,) in of_model] for of_model in (ask_stock(PROMPTS), answers)
    ]


@pytest.fixture(scope="module")
def layered(models, tmp_path_factory):
    """A server, and the numbers of attempts to come: each changes the weights, and has its own prompt."""
    flags = ("--num-layer-groups", "8", "--enable-metrics")
    log = tmp_path_factory.mktemp("layered") / "server.log"
    with running(layered_command(models[0][0], free_port(), *flags), log) as server:
        yield server, iter(range(len(PROMPTS)))


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_half_computed_prompts_start_again(mode, models, layered):
    written, wanted = models
    server, attempts = layered
    for attempt in attempts:
        asked, new = PROMPTS[attempt], (attempt + 1) % 2
        before = settled(server)["restarted_cohorts"]
        update = {"model_path": str(written[new]), "flush_cache": False}
        answers, statuses = run(
            server,
            STREAM,
            (20, asked, f"asked{attempt}"),
            actions=[
                (23, "/pause_generation", {"mode": mode}),
                (0, "/update_weights_from_disk", update),
                (0, "/continue_generation", {}),
            ],
        )
        assert statuses == [200, 200, 200], server.log_end()
        if settled(server)["restarted_cohorts"] > before:
            break
    else:
        pytest.fail("no update came between two layer groups")
    assert difference(answers[asked], wanted[new][attempt]) is None
    old = wanted[1 - new][attempt]
    assert difference(old, wanted[new][attempt]) is not None
