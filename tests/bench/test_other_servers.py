"""``bench run`` against endpoints that answer as vLLM and its like do."""

from __future__ import annotations

import json

import pytest
from fake_endpoint import FakeVllm, fake_endpoint
from layered_sglang.bench.command import main

SCENARIO = """\
model: {{path: none, vocabulary: 50}}
systems:
  other: {{url: "{url}/v1/"{more}}}
workload:
  prompt_tokens: {{uniform: [5, 9]}}
  output_tokens: 8
  arrivals: {{poisson: {{rate: 40}}}}
  requests: 6
targets: {{ttft_s: 1, itl_ms: 500}}
repeats: 1
warm_up: {{requests: 1, output_tokens: 2, least_rounds: 1, most_rounds: 1}}
"""


def run(fake: FakeVllm, tmp_path, more: str = "") -> tuple[int, list[dict], list[dict]]:
    """Exit status, rows and failures."""
    path, out = tmp_path / "s.yaml", tmp_path / "out"
    path.write_text(SCENARIO.format(url=fake.url, more=more))
    status = main(["run", str(path), "--output", str(out)])
    read = [
        [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for file in (out / "rows.jsonl", out / "failures.jsonl")
    ]
    return status, *read


@pytest.mark.parametrize(
    "fake",
    [FakeVllm(), FakeVllm(counts=False), FakeVllm(colon="data:"), FakeVllm(together=2)],
    ids=["counts", "one token an event", "no space", "two tokens an event"],
)
def test_every_token_is_counted_once_when_it_came(fake, tmp_path):
    fake.gap = 0.05
    with fake_endpoint(fake):
        status, rows, _ = run(fake, tmp_path)
    assert status == 0
    assert [row["error"] for row in rows] == [""] * 6
    events = 8 if fake._together == 1 else 4
    for row in rows:
        assert row["output_tokens"] == 8
        assert 0.045 < row["ttft_s"] < row["e2e_s"]
        assert row["e2e_s"] > 0.045 * events
        # The first event's second token has no gap of its own; the rest share theirs.
        assert len(row["itls_s"]) == (7 if events == 8 else 6)
        assert sum(row["itls_s"]) == pytest.approx(row["e2e_s"] - row["ttft_s"], abs=1e-4)
    assert {body["model"] for body in fake.bodies} == {FakeVllm.MODEL}, "the one that it lists"
    body = fake.bodies[-1]
    assert body["ignore_eos"] is True
    assert body["stream_options"]["include_usage"] is True
    assert all(isinstance(token, int) for token in body["prompt"])


def test_a_field_that_an_endpoint_refuses_is_left_out(tmp_path):
    with fake_endpoint(FakeVllm(refuses=("ignore_eos",))) as fake:
        status, rows, failures = run(fake, tmp_path)
        assert (status, rows) == (1, [])
        assert "HTTP 400" in failures[0]["error"] and "unknown ignore_eos" in failures[0]["error"]
    with fake_endpoint(FakeVllm(refuses=("ignore_eos",))) as fake:
        more = ", request: {ignore_eos: null, min_tokens: 8}"
        (tmp_path / "again").mkdir()
        status, rows, _ = run(fake, tmp_path / "again", more)
    assert (status, len(rows)) == (0, 6)
    assert fake.bodies[-1]["min_tokens"] == 8


def test_a_model_s_wrong_name_is_told(tmp_path):
    with fake_endpoint(FakeVllm()) as fake:
        status, _, failures = run(fake, tmp_path, ", model: mistaken")
    assert status == 1
    assert "The model `mistaken` does not exist." in failures[0]["error"]
