"""Random traffic against one real server: every finished answer is stock SGLang's.

Each server serves 25 seeded mixtures of requests. SGLang's own memory checks are on and fatal; after
each mixture the KV pool is whole again.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

from harness import (
    Answer,
    Request,
    free_port,
    layered_command,
    running,
)
from mixtures import make_mixture, make_requests, penalised, play

MIXTURES, SEED = 25, 20261123
REQUESTS = make_requests(80, SEED)


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


def asked_of(setup: Setup) -> list[Request]:
    """Two ranks without overlap serve requests without penalties, which overlap changes nothing for."""
    spared = setup.tp == 2 and not setup.overlap
    return [request for request in REQUESTS if not (spared and penalised(request))]


def references_of(setup: Setup, ask_stock) -> list[list[Answer]]:
    """Stock SGLang's answers to the setup's requests, at one and at two ranks; with penalties each sent
    alone.

    Alone, because with overlap on SGLang applies penalties one step late, and how late depends on
    whether a prefill came between two decode steps: stock answers to requests with penalties differ
    between four at once and one at once. Layered prefill puts no such gap between decode steps, so
    its answers are those of a request that runs alone. Without penalties both modes agree.
    Two ranks sum in another order than one, which a logprob of -12 shows at 1e-4.
    """
    ranks = ("--tp", str(setup.tp)) if setup.tp > 1 else ()
    asked = asked_of(setup)
    late = [request for request in asked if penalised(request)]
    others = [request for request in asked if not penalised(request)]
    answers = dict(zip(others, ask_stock(others, *ranks), strict=True))
    if late:
        schedule = () if setup.overlap else ("--disable-overlap-schedule",)
        answers |= zip(late, ask_stock(late, *ranks, *schedule, at_once=1), strict=True)
    return [answers[request] for request in asked]


def expect_stock_answers(setup: Setup, seeds: int, ask_stock, make_model, tmp_path) -> None:
    """Serve the mixtures of ``seeds`` and the numbers after it."""
    references = references_of(setup, ask_stock)
    requests = asked_of(setup)
    # A retracted request loses the history of its penalties, in stock SGLang too.
    compared = [TINY_POOL[0] not in setup.flags or not penalised(r) for r in requests]
    command = layered_command(make_model(), free_port(), *setup.command_flags())
    with running(command, tmp_path / "server.log") as server:
        for number in range(int(os.environ.get("LAYERED_TEST_MIXTURES", MIXTURES))):
            seed = seeds + number
            start = time.monotonic()
            mixture = make_mixture(len(requests), seed)
            wrong = asyncio.run(
                play(server, requests, references, compared, mixture, setup.priorities)
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
