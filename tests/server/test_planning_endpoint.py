"""How a running server plans, changed over HTTP while requests are under way."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from harness import Request, difference, free_port, generate, generate_all, layered_command, running
from timed import TRIES

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

IGNORE_EOS = (("ignore_eos", True),)
RUNNING = Request(tuple(range(30)), 150, IGNORE_EOS, stream=True)
PROMPTS = [Request(tuple((7 * i + k) % 256 for k in range(1500)), 4, IGNORE_EOS) for i in range(4)]
PLANS = [
    {"num_layer_groups": 8},
    {"num_layer_groups": 2},
    {"itl_slo_ms": 60_000},
    {"layer_group_tokens": 512},
]


@pytest.fixture(scope="module")
def server(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planning")
    trace = folder / "trace.jsonl"
    flags = ("--itl-slo-ms", "30000", "--disable-radix-cache", "--layered-trace-file", str(trace))
    command = layered_command(make_model(), free_port(), *flags)
    with running(command, folder / "log") as server:
        server.trace = trace
        yield server


async def put(session, server, body):
    async with session.put(server.url + "/layered_prefill", json=body) as response:
        return response.status, await response.json()


def test_what_cannot_be_is_answered_with_400_and_changes_nothing(server):
    async def ask(body):
        async with aiohttp.ClientSession() as session:
            return await put(session, server, body)

    for body, line in (
        ({"num_layer_groups": 9}, "--num-layer-groups 9 is more than the model's 8 layers; choose"),
        ({"itl_slo_ms": "fast"}, "itl_slo_ms must be a number, got 'fast'"),
        (["itl_slo_ms"], "expected an object with some of"),
    ):
        status, answer = asyncio.run(ask(body))
        assert status == 400
        assert answer["error"].startswith(line)
    told = server.get("/layered_prefill").json()
    assert told["now"] == told["start"]
    assert told["start"]["itl_slo_ms"] == 30000


def test_the_next_cohort_is_planned_by_the_new_values_and_answers_stay(server, ask_stock):
    reference = ask_stock(PROMPTS)

    async def run():
        """Each plan set while one request decodes, then a prompt sent."""
        answers = []
        async with aiohttp.ClientSession() as session:
            for plan, request in zip(PLANS, PROMPTS, strict=True):
                begun = asyncio.Event()
                decoding = asyncio.create_task(
                    generate(session, server, RUNNING, progress=lambda _, begun=begun: begun.set())
                )
                await begun.wait()
                status, answer = await put(session, server, plan)
                assert status == 200, answer
                assert {k: v for k, v in answer["now"].items() if k in plan} == plan
                answers.append(await generate(session, server, request))
                await decoding
        return answers

    for _ in range(TRIES):
        before = len(server.trace.read_text())
        for got, want in zip(asyncio.run(run()), reference, strict=True):
            assert difference(got[0], want[0]) is None
        server.wait_idle()
        groups = {}
        for line in map(json.loads, server.trace.read_text()[before:].splitlines()):
            if line["layers"] is not None and line["decode"]:
                for rid, _, tokens in line["cohort"]:
                    if tokens == 1500:
                        groups.setdefault(rid, []).append(line["layers"][1] - line["layers"][0])
        if [sum(sizes) for sizes in groups.values()] == [8] * 4:
            break
    else:
        pytest.fail(f"what decodes had ended when a prompt came: {groups}")
    # 8 groups, 2, whatever 60 s allow, ceil(1500 / 512).
    assert [len(sizes) for sizes in groups.values()] == [8, 2, 1, 3]


def test_a_policy_changed_within_a_cohort_runs_every_layer_once(server):
    """From eight groups to one target and back, at any moment."""
    plans = [{"num_layer_groups": 8}, {"itl_slo_ms": 1}, {"layer_group_tokens": 100}, {}]

    async def run():
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(
                generate_all(server, [RUNNING, *PROMPTS, *PROMPTS, RUNNING], at_once=4)
            )
            count = 0
            while not asking.done():
                status, answer = await put(session, server, plans[count % len(plans)])
                assert status == 200, answer
                count += 1
                await asyncio.sleep(0.03)
            return await asking, count

    for _ in range(TRIES):
        answers, count = asyncio.run(run())
        assert [len(a[0].tokens) for a in answers] == [150, *[4] * 8, 150]
        first, second = answers[1:5], answers[5:9]
        for a, b in zip(first, second, strict=True):
            assert difference(a[0], b[0]) is None
        if count > 8:
            return
    pytest.fail("all was answered before the plan had changed often")
