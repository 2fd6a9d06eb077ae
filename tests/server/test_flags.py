"""SGLang's flags of the host's side, many at once: a layered server's answers stay stock SGLang's."""

from __future__ import annotations

import random

import pytest
from half_way import check, settled
from harness import Request, free_port, layered_command, running
from timed import TRIES, run

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

_RNG = random.Random(41)
IGNORE_EOS = (("ignore_eos", True),)


def prompt(n: int) -> tuple[int, ...]:
    return tuple(_RNG.randrange(256) for _ in range(n))


STREAM = Request(prompt(30), 150, IGNORE_EOS, stream=True)
FIRST = Request(prompt(700), 12, IGNORE_EOS)
LONG = Request(prompt(2100), 8, IGNORE_EOS, logprob_start=0)  # three chunks
SHORT = Request(prompt(40), 30, IGNORE_EOS)
AGAIN = Request((*FIRST.prompt, *prompt(50)), 8, IGNORE_EOS)
ALL = [STREAM, FIRST, LONG, SHORT, AGAIN]


@pytest.mark.parametrize(
    "flags",
    [
        "--disable-radix-cache --scheduler-recv-interval 3 --stream-interval 3 --cpu-offload-gb 1 "
        "--prefill-max-requests 2 --min-free-slots-delay 1 --disable-tokenizer-batch-decode "
        "--enable-expert-distribution-metrics --enable-mfu-metrics --enable-request-time-stats-logging",
        "--schedule-policy lpm --radix-eviction-policy lfu "
        "--max-running-requests 4 --enable-prefill-delayer --skip-tokenizer-init",
    ],
    ids=["without a radix cache", "with one"],
)
def test_answers_with_many_flags(flags, make_model, ask_stock, tmp_path):
    wanted = dict(zip(ALL, (answer for (answer,) in ask_stock(ALL)), strict=True))
    ours = ("--num-layer-groups", "8", "--layered-max-prefill-tokens", "1000", "--enable-metrics")
    command = layered_command(make_model(), free_port(), *ours, *flags.split())
    with running(command, tmp_path / "server.log") as server:
        for _ in range(TRIES):
            before = server.counters()["iterations:merged"]
            answers, _ = run(
                server,
                STREAM,
                (10, FIRST, "first"),
                (30, LONG, "long"),
                (33, SHORT, "short"),
                (80, AGAIN, "again"),
            )
            after = settled(server)
            check(answers, wanted)
            if after["iterations:merged"] >= before + 16:
                return
    pytest.fail("hardly anything was layered")
