"""Random traffic against the real server: every finished answer is stock SGLang's.

Eight servers (overlap on and off, one and two tensor-parallel ranks, radix cache on and off, with
small KV pools, chunks and layer groups spread over them) serve 26 seeded mixtures each. SGLang's own
memory checks are on and fatal; after each mixture the KV pool is whole again.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from harness import (
    Answer,
    free_port,
    generate_all,
    layered_command,
    running,
    stock_command,
)
from mixtures import make_mixture, make_requests, penalised, play

pytestmark = pytest.mark.server

MIXTURES, SEED = 26, 20261123
REQUESTS = make_requests(120, SEED)


@dataclass(frozen=True)
class Setup:
    overlap: bool
    tp: int
    radix: bool
    flags: tuple[str, ...]
    priorities: bool = False

    def __str__(self) -> str:
        return "-".join(
            (
                "overlap" if self.overlap else "sync",
                f"tp{self.tp}",
                "radix" if self.radix else "noradix",
            )
        )

    def command_flags(self) -> list[str]:
        flags = ["--enable-metrics", *self.flags]
        flags += [] if self.overlap else ["--disable-overlap-schedule"]
        flags += ["--tp", str(self.tp)] if self.tp > 1 else []
        flags += [] if self.radix else ["--disable-radix-cache"]
        flags += ["--enable-priority-scheduling"] if self.priorities else []
        return flags


TINY_POOL = ("--max-total-tokens", "3200")
SMALL_CHUNKS = ("--layered-max-prefill-tokens", "640")
CHUNKS = (*SMALL_CHUNKS, "--layer-group-tokens", "100")
# A target that one layer beside decode breaks on a small CPU: one layer an iteration, much overtaking.
TIGHT = ("--itl-slo-ms", "4")
SETUPS = [
    Setup(True, 1, True, ("--layer-group-tokens", "64")),
    Setup(True, 1, False, (*TINY_POOL, *SMALL_CHUNKS, *TIGHT)),
    Setup(False, 1, True, (*TINY_POOL, *SMALL_CHUNKS), priorities=True),
    Setup(False, 1, False, ("--num-layer-groups", "3", "--max-running-requests", "3")),
    Setup(True, 2, True, (*TINY_POOL, *SMALL_CHUNKS, *TIGHT)),
    Setup(True, 2, False, ()),
    Setup(False, 2, True, ("--num-layer-groups", "8")),
    Setup(False, 2, False, (*TINY_POOL, *CHUNKS)),
]


@pytest.fixture(scope="module")
def stock_answers(make_model, tmp_path_factory) -> Callable[[Setup], list[list[Answer]]]:
    """Stock SGLang's answers to the requests, each sent alone; at one and at two ranks.

    Alone, because with overlap on SGLang applies penalties one step late, and how late depends on
    whether a prefill came between two decode steps: stock answers to requests with penalties differ
    between four at once and one at once. Layered prefill puts no such gap between decode steps, so
    its answers are those of a request that runs alone. Without penalties both modes agree.
    Two ranks sum in another order than one, which a logprob of -12 shows at 1e-4.
    """

    def ask(asked: list[int], tp: int, *flags: str) -> list[list[Answer]]:
        flags = ("--disable-radix-cache", *flags, *(["--tp", str(tp)] if tp > 1 else []))
        log = tmp_path_factory.mktemp("stock") / "server.log"
        with running(stock_command(make_model(), free_port(), *flags), log) as server:
            return asyncio.run(generate_all(server, [REQUESTS[i] for i in asked], at_once=1))

    @functools.cache
    def answers(overlap: bool, tp: int) -> list[list[Answer]]:
        if overlap:
            return ask(list(range(len(REQUESTS))), tp)
        differ = [i for i, request in enumerate(REQUESTS) if penalised(request)]
        got = list(answers(True, tp))
        for i, answer in zip(differ, ask(differ, tp, "--disable-overlap-schedule"), strict=True):
            got[i] = answer
        return got

    return lambda setup: answers(setup.overlap, setup.tp)


@pytest.mark.parametrize("setup", SETUPS, ids=str)
@pytest.mark.timeout(1500)
def test_answers_are_stock_sglangs(setup, stock_answers, make_model, tmp_path):
    references = stock_answers(setup)
    # A retracted request loses the history of its penalties, in stock SGLang too.
    compared = [TINY_POOL[0] not in setup.flags or not penalised(r) for r in REQUESTS]
    command = layered_command(make_model(), free_port(), *setup.command_flags())
    with running(command, tmp_path / "server.log") as server:
        for number in range(int(os.environ.get("LAYERED_TEST_MIXTURES", MIXTURES))):
            seed = SEED + 1000 * SETUPS.index(setup) + number
            start = time.monotonic()
            mixture = make_mixture(len(REQUESTS), seed)
            wrong = asyncio.run(
                play(server, REQUESTS, references, compared, mixture, setup.priorities)
            )
            assert not wrong, f"mixture {seed}:\n" + "\n".join(wrong) + "\n" + server.log_end()
            server.wait_idle()
            assert server.held_tokens() == 0, f"mixture {seed} left KV behind"
            print(f"mixture {seed}: {len(mixture)} requests, {time.monotonic() - start:.1f} s")
        counters = server.counters()
        print({name: int(value) for name, value in sorted(counters.items())})
        assert counters["iterations:merged"] > MIXTURES, "hardly anything was layered"
        if TINY_POOL[0] in setup.flags:
            assert counters["chunked_tokens"] > 0
