"""Linear attention: states are in slots of SGLang's, fewer than there may be prompts waiting."""

from __future__ import annotations

import asyncio

import pytest
from half_way import IGNORE_EOS, STREAM, prompt
from harness import Request, difference, free_port, generate_all, layered_command, running
from timed import run

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

SLOTS = 10
PREFIX = prompt(400)
FIRST = Request(PREFIX, 4, IGNORE_EOS)
#: Each finds the state after the first prompt in the radix cache.
AGAIN = [Request(PREFIX + prompt(100 + i), 4, IGNORE_EOS) for i in range(3 * SLOTS)]


def test_prompts_that_wait_take_no_slots(make_model, ask_stock, tmp_path):
    """The planner looks at all of them, and asks the radix cache what it has of each."""
    model = "tiny-qwen3-next"
    wanted = dict(zip([STREAM, *AGAIN], ask_stock([STREAM, *AGAIN], model=model), strict=True))
    flags = ["--itl-slo-ms", "4", "--disable-overlap-schedule", "--max-running-requests", "3"]
    flags += ["--max-mamba-cache-size", str(SLOTS)]
    command = layered_command(make_model(model), free_port(), *flags)
    with running(command, tmp_path / "server.log") as server:
        asyncio.run(generate_all(server, [FIRST]))
        arrivals = [(10, request, f"again-{i}") for i, request in enumerate(AGAIN)]
        answers, _ = run(server, STREAM, *arrivals)
        server.wait_idle()
        assert server.held_tokens() == 0
    for request, answer in answers.items():
        assert difference(answer, wanted[request][0]) is None
