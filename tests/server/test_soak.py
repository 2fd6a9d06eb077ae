"""A bad week: seeded traffic, aborts, disconnects, pauses, flushes, bad requests, other policies.

For developers, ``LAYERED_SOAK_SECONDS=600``: every server below serves phase after phase for so many
seconds, in which SGLang's memory checks are fatal, and every answer is held to stock SGLang's.
``LAYERED_SOAK_SEED`` is the first phase's seed. What a phase meets depends on time: what fails is to be
made a test of its own, that does not.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

import pytest
from harness import free_port, layered_command, running
from soak_checks import Checks
from soak_play import Player
from soak_traffic import POOL, continued, make_asked, make_phase
from test_adapters import adapter_flags

SEED = int(os.environ.get("LAYERED_SOAK_SEED", "20261126"))
SECONDS = float(os.environ.get("LAYERED_SOAK_SECONDS", "0"))
ASKED = 90
TINY_POOL = ("--max-total-tokens", str(POOL), "--schedule-conservativeness", "0.01")
CHUNKS = ("--layered-max-prefill-tokens", "250")
FIXED = ("--num-layer-groups", "8")
TIGHT = ("--itl-slo-ms", "4")
#: SGLang takes requests back every so many iterations, full pool or not.
RETRACT = (("SGLANG_TEST_RETRACT", "1"), ("SGLANG_TEST_RETRACT_INTERVAL", "7"))
SYNC = ("--disable-overlap-schedule",)


@dataclass(frozen=True)
class Setup:
    """A server to soak: its model, its flags, and what stock answers with."""

    name: str
    flags: tuple[str, ...]
    model: str = "tiny"
    stock: tuple[str, ...] = ()
    adapters: bool = False
    env: tuple[tuple[str, str], ...] = ()


SETUPS = [
    Setup("tight", (*TINY_POOL, *CHUNKS, *TIGHT, "--enable-priority-scheduling")),
    Setup("fixed-sync", (*TINY_POOL, *CHUNKS, *FIXED, *SYNC)),
    Setup("fixed", (*TINY_POOL, *FIXED)),
    Setup("untargeted", ("--layered-max-prefill-tokens", "800")),
    Setup("few-requests", (*FIXED, "--max-running-requests", "2")),
    Setup("one-request", (*TIGHT, "--max-running-requests", "1")),
    Setup(
        "preemption",
        (
            *(*CHUNKS, *TIGHT, "--enable-priority-scheduling", "--max-running-requests", "4"),
            *("--priority-scheduling-preemption-threshold", "0"),
        ),
    ),
    Setup("retracting", (*CHUNKS, *TIGHT), env=RETRACT),
    Setup("retracting-windows", (*TINY_POOL, *CHUNKS, *FIXED), "tiny-gpt-oss", env=RETRACT),
    Setup("no-radix", (*TINY_POOL, *CHUNKS, *TIGHT, "--disable-radix-cache")),
    Setup("longest-prefix", (*CHUNKS, *TIGHT, "--schedule-policy", "lpm")),
    Setup("host-cache", (*TINY_POOL, *CHUNKS, *TIGHT, "--enable-hierarchical-cache")),
    Setup("windows", (*TINY_POOL, *CHUNKS, *TIGHT), "tiny-gpt-oss"),
    Setup("windows-fixed", (*TINY_POOL, *FIXED), "tiny-gpt-oss"),
    Setup("linear", (*CHUNKS, *TIGHT, *SYNC, "--max-running-requests", "6"), "tiny-qwen3-next"),
    Setup("linear-fixed", (*TINY_POOL, *CHUNKS, *FIXED, *SYNC), "tiny-qwen3-next"),
    Setup("latent", (*TINY_POOL, *CHUNKS, *TIGHT), "tiny-deepseek-v3"),
    Setup("dense", (*TINY_POOL, *CHUNKS, *FIXED), "tiny-llama"),
    Setup("two-ranks", (*TINY_POOL, *CHUNKS, *TIGHT, "--tp", "2"), stock=("--tp", "2")),
    Setup("adapters", (*CHUNKS, *TIGHT), adapters=True),
]

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(900 + 2 * SECONDS),
    pytest.mark.skipif(not SECONDS, reason="a soak: LAYERED_SOAK_SECONDS says for how long"),
]


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_soak(setup, ask_stock, make_model, tmp_path):
    flags = adapter_flags(tmp_path) if setup.adapters else []
    names = ("first", "second", "third", None) if setup.adapters else ()
    asked = make_asked(ASKED, SEED, names)
    ask = [*setup.stock, *flags]
    references = ask_stock(asked, *ask, model=setup.model)
    turns = continued(asked, references, SEED)
    seconds = ask_stock(list(turns.values()), *ask, model=setup.model)

    trace = tmp_path / "trace.jsonl"
    ours = [*setup.flags, *flags, "--enable-metrics", "--layered-trace-file", str(trace)]
    command = layered_command(make_model(setup.model), free_port(), *ours)
    with running(command, tmp_path / "server.log", dict(setup.env)) as server:
        player = Player(
            server,
            asked,
            references,
            turns,
            dict(zip(turns, seconds, strict=True)),
            "--enable-priority-scheduling" in setup.flags,
        )
        checks = Checks(server, trace, layers=8)
        began, number = time.monotonic(), 0
        while time.monotonic() - began < SECONDS:
            phase = make_phase(asked, turns, SEED + number)
            wrong = asyncio.run(player.play(phase))
            wrong += checks.wrong()
            if wrong:
                print(f"{setup.name}, phase {SEED + number}:", *wrong, sep="\n", flush=True)
            assert not wrong, f"phase {SEED + number} {phase.actions}:\n" + "\n".join(wrong)
            number += 1
            if number % 10 == 0:
                assert not checks.unhealthy()
                print(f"{number} phases, {player.requests} requests, {checks.memory():.0f} MiB")
        print(f"{number} phases, {player.requests} requests", server.counters())
