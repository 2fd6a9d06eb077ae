"""``--enable-hierarchical-cache``: a prompt whose prefix comes back from the host while it is layered."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from half_way import IGNORE_EOS, STREAM, prompt, run
from harness import Request, difference, free_port, generate_all, layered_command, running
from timed import TRIES

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

PLUGIN = Path(__file__).parent / "late_loads"
POOL = 3300
PREFIX = prompt(1400)
FIRST = Request(PREFIX, 4, IGNORE_EOS)
#: They take the places of what was there before on the device.
OTHERS = [Request(prompt(1500), 4, IGNORE_EOS) for _ in range(2)]
AGAIN = [Request(PREFIX + prompt(500 + i), 12, IGNORE_EOS) for i in range(8)]
SHORT = [Request(PREFIX + prompt(20 + i), 12, IGNORE_EOS) for i in range(8)]


@pytest.fixture(scope="module")
def wanted(ask_stock):
    asked = [STREAM, *AGAIN, *SHORT]
    return {r: answer for r, (answer,) in zip(asked, ask_stock(asked), strict=True)}


class Cached:
    """A server, what it loaded from the host, and its counters."""

    def __init__(self, server, loads: Path) -> None:
        self.server, self._loads = server, loads

    def loaded(self) -> int:
        """Tokens, so far."""
        if not self._loads.exists():
            return 0
        return sum(map(int, self._loads.read_text().split()))

    def push_out(self) -> None:
        """Have ``PREFIX`` on the host alone."""
        asyncio.run(generate_all(self.server, [FIRST, *OTHERS], at_once=1))

    def counter(self, name: str) -> float:
        return self.server.counters()[name]


@pytest.fixture
def serve(make_model, tmp_path):
    def command(*flags: str):
        sizes = ("--max-total-tokens", str(POOL), "--hicache-ratio", "3")
        return layered_command(
            make_model(),
            free_port(),
            *("--enable-hierarchical-cache", *sizes, "--enable-metrics", *flags),
        )

    loads = tmp_path / "loads"
    env = {
        "LATE_LOADS": str(loads),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])),
    }
    return lambda *flags: running(command(*flags), tmp_path / "log", env), loads


def test_layer_groups_wait_for_their_layers(serve, wanted):
    start, loads = serve
    with start("--num-layer-groups", "8") as server:
        cached = Cached(server, loads)
        for _ in range(TRIES):
            cached.push_out()
            before, merged = cached.loaded(), cached.counter("iterations:merged")
            answers, _ = run(server, STREAM, (20, AGAIN[0], "again"))
            for request, answer in answers.items():
                assert difference(answer, wanted[request]) is None
            assert cached.loaded() > before and answers[AGAIN[0]].cached >= 1300
            if cached.counter("iterations:merged") >= merged + 8:
                break
        else:
            pytest.fail("nothing was layered")

        # Who comes after a cohort that nobody waits for any more finds its prefix loaded.
        for asked in AGAIN[1:]:
            cached.push_out()
            before, dropped = cached.loaded(), cached.counter("aborted_cohorts")
            abort = (23, "/abort_request", {"rid": "gone"})
            run(server, STREAM, (20, asked, "gone"), actions=[abort])
            if cached.loaded() > before and cached.counter("aborted_cohorts") > dropped:
                break
        else:
            pytest.fail("no cohort was dropped while its prefix was loaded")
        ((answer,),) = asyncio.run(generate_all(server, [asked]))
        assert difference(answer, wanted[asked]) is None and answer.cached >= 1300


def test_who_overtakes_waits_for_a_prefix_that_both_share(serve, wanted):
    """The short prompt finds it in the radix tree while it is still loaded for the long one."""
    start, loads = serve
    with start("--itl-slo-ms", "4") as server:
        cached = Cached(server, loads)
        for long, short in zip(AGAIN, SHORT, strict=True):
            cached.push_out()
            before, overtook = cached.loaded(), cached.counter("overtaking_cohorts")
            answers, _ = run(server, STREAM, (20, long, "long"), (22, short, "short"))
            for request, answer in answers.items():
                assert difference(answer, wanted[request]) is None
            if cached.loaded() > before and cached.counter("overtaking_cohorts") > overtook:
                return
        pytest.fail("nobody overtook a cohort whose prefix was loaded")
