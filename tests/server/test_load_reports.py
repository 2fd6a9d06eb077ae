"""Half-computed prompts as others see them: balancers, dashboards, and a batch that they fill."""

from __future__ import annotations

from threading import Thread

import pytest
from half_way import IGNORE_EOS, STREAM, ask_together, prompt, settled
from harness import Request, free_port, layered_command, running
from timed import TRIES, run

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

LAYERS = 8
PAUSE, CONTINUE = "/pause_generation", "/continue_generation"


def prompts(count):
    """New ones, of 300 tokens: the radix cache has none of their prefixes."""
    return [Request(prompt(300), 4, IGNORE_EOS) for _ in range(count)]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """One layer an iteration. It reports on every iteration, and has four places in its batch."""
    flags = ("--num-layer-groups", str(LAYERS), "--enable-metrics", "--decode-log-interval", "1")
    flags += ("--load-snapshot-publish-interval", "1", "--max-running-requests", "4")
    log = tmp_path_factory.mktemp("layered") / "server.log"
    with running(layered_command(model, free_port(), *flags), log) as s:
        yield s


def gauge(server, name):
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def test_half_computed_prompts_are_part_of_the_load(server):
    """A pause leaves them where they are, and the last report stands."""

    def look():
        (load,) = server.get("/v1/loads").json()["loads"]
        return server.counters(), load, gauge(server, "sglang:num_running_reqs")

    for _ in range(TRIES):
        before = settled(server)
        (asked,) = prompts(1)
        actions = [(23, PAUSE, {"mode": "in_place"}), (0, "/flush_cache", {}), (0, look, None)]
        actions += [(0, CONTINUE, {})]
        _, (paused, _, (counters, load, gauged), continued) = run(
            server, STREAM, (20, asked, "asked"), actions=actions
        )
        assert (paused, continued) == (200, 200)
        launched = counters["layer_groups"] - before["layer_groups"]
        if 2 <= launched < LAYERS:  # the report is of the iteration before
            break
    else:
        pytest.fail("no pause came between two layer groups")
    assert load["num_running_reqs"] == gauged == 2
    assert load["num_waiting_reqs"] == 0
    left = 300 * (1 - launched / LAYERS)
    assert load["num_waiting_uncached_tokens"] == pytest.approx(left, abs=1)
    settled(server)


def test_prompts_taken_back_need_not_wait_for_those_that_run(server, model):
    """With three of them the batch was full, and two waited. Once they are taken back it is not."""
    update = {"model_path": str(model), "flush_cache": False}
    for _ in range(TRIES):
        before = settled(server)
        asked, answers = prompts(5), {}
        together = Thread(target=lambda: answers.update(ask_together(server, asked)))  # noqa: B023
        actions = [(20, together.start, None), (23, PAUSE, {"mode": "in_place"})]
        actions += [(0, "/update_weights_from_disk", update), (0, CONTINUE, {})]
        _, (_, *statuses) = run(server, STREAM, actions=actions)
        together.join()
        assert statuses == [200, 200, 200], server.log_end()
        assert {answer.finish for answer in answers.values()} == {"length"}
        after = settled(server)
        restarted, cohorts, tokens = (
            after[name] - before[name]
            for name in ("restarted_cohorts", "cohorts", "layered_tokens")
        )
        # Had they waited until nobody ran, SGLang's own prefill would have taken them then.
        if restarted == 1 and cohorts == 3 and tokens == (3 + 3 + 2) * 300:
            return
    pytest.fail(
        f"at last {restarted} of {cohorts} cohorts started again, of {tokens} tokens in all"
    )
