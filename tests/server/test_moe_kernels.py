"""--moe-kernels in a real server: our experts beneath SGLang's own schedule, and one line if not."""

from __future__ import annotations

import asyncio
import random

import pytest
from harness import (
    Request,
    difference,
    failed_start,
    free_port,
    generate_all,
    layered_command,
    running,
)

pytestmark = pytest.mark.server
CHUNKED = ("--prefill-schedule", "chunked", "--dtype", "bfloat16")


def requests() -> list[Request]:
    rng = random.Random(5)
    sizes = [(30, 40), (700, 20), (5, 30), (400, 16)]
    return [Request(tuple(rng.randrange(256) for _ in range(n)), out) for n, out in sizes]


@pytest.mark.timeout(600)
def test_layered_kernels_beneath_sglangs_schedule(make_model, tmp_path):
    answers = {}
    for kernels in ("sglang", "layered"):
        command = layered_command(make_model(), free_port(), *CHUNKED, "--moe-kernels", kernels)
        with running(command, tmp_path / f"{kernels}.log") as server:
            answers[kernels] = asyncio.run(generate_all(server, requests(), at_once=1))
            says = "experts: layered_sglang's fused experts" in server.log.read_text()
            assert says == (kernels == "layered")
    # Both compute in bfloat16 and round at other places: a logit of 8 has steps of 0.06.
    pairs = zip(answers["layered"], answers["sglang"], strict=True)
    for i, ((got,), (want,)) in enumerate(pairs):
        assert (problem := difference(got, want, tolerance=0.15)) is None, f"{i}: {problem}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("schedule", ["chunked", "layered"])
def test_experts_that_cannot_be_served_end_the_start_in_one_line(make_model, tmp_path, schedule):
    flags = ("--prefill-schedule", schedule, "--moe-kernels", "layered")  # the model is float32
    command = layered_command(make_model(), free_port(), *flags)
    assert failed_start(command, tmp_path / "server.log") == [
        "layered-sglang: error: --moe-kernels layered cannot compute the experts: they are float32, "
        "and the kernels take bfloat16; use --moe-kernels auto or sglang"
    ]
