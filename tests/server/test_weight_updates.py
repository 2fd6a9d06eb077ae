"""New weights while serving: a prompt that is half computed gets the answer of the new ones alone, and
what cannot use them refuses them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from threading import Thread

import pytest
from half_way import IGNORE_EOS, STREAM, prompt, run, settled
from harness import (
    Request,
    answer_of,
    difference,
    free_port,
    generate_all,
    layered_command,
    running,
    stock_command,
)
from layered_sglang.model_zoo import find_preset, write_model
from timed import TRIES

PACKED = Path(__file__).parent / "packed_experts"
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
    flags = ("--num-layer-groups", "8", "--enable-metrics", "--enable-streaming-session")
    log = tmp_path_factory.mktemp("layered") / "server.log"
    with running(layered_command(models[0][0], free_port(), *flags), log) as server:
        yield server, iter(range(len(PROMPTS)))


@pytest.mark.parametrize("turns", [1, 2])
def test_a_half_computed_turn_of_a_session_starts_again(turns, models, layered):
    """A streaming session keeps its KV slots from turn to turn: none of a turn that is not through. The
    weights are those of before, so its answer is that of its whole history as one prompt."""
    server, _ = layered
    update = {"model_path": str(models[0][0]), "flush_cache": False}

    def answer(request, name=None):
        params = {} if name is None else {"session_params": {"id": name}}
        return answer_of(server.post("/generate", **request.body(None), **params).json())

    for attempt in range(TRIES):
        before, name = settled(server)["restarted_cohorts"], f"{turns}-{attempt}"
        opened = server.post(
            "/open_session", capacity_of_str_len=8000, session_id=name, streaming=True
        )
        assert opened.status_code == 200
        history = ()
        for _ in range(1, turns):
            turn = Request(prompt(40), 6, IGNORE_EOS)
            history += turn.prompt + tuple(answer(turn, name).tokens)
        last, answers = Request(prompt(600), 12, IGNORE_EOS), []
        asking = Thread(target=lambda: answers.append(answer(last, name)))  # noqa: B023
        actions = [(20, asking.start, None), (23, "/pause_generation", {"mode": "in_place"})]
        actions += [(0, "/update_weights_from_disk", update), (0, "/continue_generation", {})]
        run(server, STREAM, actions=actions)
        asking.join()
        assert server.post("/close_session", session_id=name).status_code == 200
        after = settled(server)["restarted_cohorts"]
        whole = answer(Request(history + last.prompt, 12, IGNORE_EOS))
        assert difference(answers[0], whole) is None
        if after > before:
            return
    pytest.fail("no update came between two layer groups")


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


def test_weights_that_cannot_be_updated_stay(models, tmp_path):
    """A prompt that is half computed goes on, and everybody gets the old weights' answers."""
    written, (wanted, _) = models
    path = os.pathsep.join(filter(None, [str(PACKED), os.environ.get("PYTHONPATH")]))
    env = {"PACKED_EXPERTS": "1", "PYTHONPATH": path}
    flags = ("--num-layer-groups", "8", "--enable-metrics")
    update = {"model_path": str(written[1]), "flush_cache": False}
    refused = "Refused UpdateWeightFromDiskReqInput"
    command = layered_command(written[0], free_port(), *flags)
    with running(command, tmp_path / "server.log", env) as server:
        for attempt, asked in enumerate(PROMPTS[:4]):
            answers, statuses = run(
                server,
                STREAM,
                (20, asked, f"asked{attempt}"),
                actions=[
                    (23, "/pause_generation", {"mode": "in_place"}),
                    (0, "/update_weights_from_disk", update),
                    (0, "/continue_generation", {}),
                ],
            )
            assert statuses == [200, 400, 200], server.log_end()
            assert difference(answers[asked], wanted[attempt]) is None
        assert server.log.read_text().count(refused) == 4
        assert settled(server)["restarted_cohorts"] == 0
        answer = server.post("/update_weights_from_disk", **update)
        assert answer.status_code == 400 and not answer.json()["success"]
        assert answer.json()["message"].startswith("the weights stay as they are: ")
        last = asyncio.run(generate_all(server, PROMPTS[-1:]))[0][0]
        assert difference(last, wanted[-1]) is None


def test_our_kernels_use_new_weights(models, tmp_path):
    """In bfloat16, in which they compute: as a server that started with those weights."""
    flags = ("--dtype", "bfloat16", "--moe-kernels", "layered")
    at_start, updated = [], []
    for old in (0, 1):
        written = [str(models[0][i]) for i in (old, 1 - old)]
        command = layered_command(written[0], free_port(), *flags)
        with running(command, tmp_path / f"{old}.log") as server:
            assert "experts: layered_sglang's fused experts" in server.log.read_text()
            at_start += asyncio.run(generate_all(server, PROMPTS[:2], at_once=1))
            answer = server.post("/update_weights_from_disk", model_path=written[1])
            assert answer.status_code == 200, answer.text
            updated += asyncio.run(generate_all(server, PROMPTS[:2], at_once=1))
    swapped = zip(at_start, updated[2:] + updated[:2], strict=True)
    for (started,), (new,) in swapped:
        assert difference(new, started) is None
    assert difference(at_start[0][0], at_start[2][0]) is not None
