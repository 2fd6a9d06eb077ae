"""SIGTERM, as an orchestrator sends it: what is being answered is answered, half-computed prompts too."""

from __future__ import annotations

import os
import signal

import pytest
from half_way import IGNORE_EOS, check, prompt, run
from harness import Request, ServerDied, free_port, layered_command, running

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

LASTING = Request(prompt(20), 500, IGNORE_EOS, stream=True)
LONG = Request(prompt(1500), 6, IGNORE_EOS, logprob_start=0)


def test_a_server_that_is_told_to_end_answers_first(make_model, tmp_path, ask_stock):
    asked = [LASTING, LONG]
    wanted = {r: answer for r, (answer,) in zip(asked, ask_stock(asked), strict=True)}
    flags = ("--num-layer-groups", "8", "--layer-group-policy", "fixed")
    command = layered_command(make_model(), free_port(), *flags)
    log = tmp_path / "server.log"
    with pytest.raises(ServerDied), running(command, log) as server:
        end = (24, lambda: os.kill(server.process.pid, signal.SIGTERM), {})
        check(run(server, LASTING, (20, LONG, "long"), actions=[end])[0], wanted)
        server.process.wait(300)
    said = log.read_text(errors="replace")
    assert "SIGTERM received" in said
    assert "Traceback" not in said and "leak" not in said.lower()
