"""Layer graphs, as far as a CPU can show: the same answers through static, padded rows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from harness import free_port, layered_command, running
from mixtures import make_mixture, make_requests, penalised, play

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
STAND_IN = Path(__file__).parent / "graph_stand_in"
REQUESTS = [r for r in make_requests(60, seed=4) if not penalised(r)]


FIXED = ("--layer-group-tokens", "100")
OVERTAKING = ("--itl-slo-ms", "4")  # one layer an iteration; short cohorts take the long one's rows


@pytest.mark.parametrize(
    ("model", "overlap", "policy", "side_by_side"),
    [
        ("tiny", True, OVERTAKING, False),
        ("tiny", False, FIXED, False),
        ("tiny", True, OVERTAKING, True),
        ("tiny-qwen3.5-moe", True, OVERTAKING, False),
    ],
    ids=["overlap-slo", "sync-fixed", "side-by-side", "linear-attention"],
)
def test_answers_through_layer_graphs_are_stock_sglangs(
    make_model, ask_stock, tmp_path, model, overlap, policy, side_by_side
):
    """Prompts of up to 3000 tokens: cohorts above and below the largest graph, batches above the
    largest captured one, cohorts cut into chunks, cohorts that others overtake. Side by side: cohorts
    above the largest graph run beside decode's whole graph."""
    replays = tmp_path / "replays"
    env = {
        "GRAPH_STAND_IN_FILE": str(replays),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(STAND_IN), os.environ.get("PYTHONPATH")])),
    }
    if side_by_side:
        env["GRAPH_STAND_IN_SIDE_BY_SIDE"] = "1"
    flags = [*policy, "--layered-max-prefill-tokens", "1500"]
    flags += ["--enable-metrics", *([] if overlap else ["--disable-overlap-schedule"])]
    if model != "tiny":
        flags += ["--disable-radix-cache"]  # without a GPU it has no overlap beside states
    command = layered_command(make_model(model), free_port(), *flags)
    with running(command, tmp_path / "layered.log", env) as server:
        server.expect_logged("each layer of decode up to 8 requests, of layer groups up to 1024")
        # Who overtakes whom depends on when requests come: a few mixtures more, if nobody did.
        enough = 12 if model == "tiny" else 4  # linear attention is slow without a GPU
        for seed in range(enough if policy is not OVERTAKING else 48):
            if seed >= enough and server.counters()["overtaking_cohorts"] > 0:
                break
            mixture = make_mixture(len(REQUESTS), seed)
            asked = {arrival.index: REQUESTS[arrival.index] for arrival in mixture}
            answers = ask_stock(list(asked.values()), model=model)
            references = dict(zip(asked, answers, strict=True))
            compared = dict.fromkeys(asked, True)
            wrong = asyncio.run(play(server, REQUESTS, references, compared, mixture, False))
            assert not wrong, f"mixture {seed}:\n" + "\n".join(wrong) + "\n" + server.log_end()
            server.wait_idle()
            assert server.held_tokens() == 0
        if policy is OVERTAKING:
            assert server.counters()["overtaking_cohorts"] > 0
    kinds = replays.read_text()
    assert (kinds.count("w") > 50) == side_by_side
    assert kinds.count("d") > 200 and kinds.count("m") > 50
