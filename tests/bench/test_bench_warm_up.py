"""When the warm-up ends, and what it sends."""

from __future__ import annotations

from layered_sglang.bench.running.warm_up import stable, warm_up_requests
from layered_sglang.bench.spec.scenario import find_scenario, load_scenario


def test_two_alike_rounds_end_it():
    assert not stable([(5.0, 0.1)])
    assert not stable([(9.0, 0.1), (5.0, 0.1)]), "the first round compiled"
    assert not stable([(5.0, 0.1), (5.0, 1.1)]), "one gap of a second: a kernel compiled"
    assert stable([(9.0, 1.1), (5.0, 0.1), (5.2, 0.12)])


def test_rounds_have_like_lengths_and_other_tokens():
    scenario = load_scenario(find_scenario("quick"), ["warm_up.requests=5"])
    first, second = warm_up_requests(scenario, 1), warm_up_requests(scenario, 2)
    pairs = [(len(a.prompt), len(b.prompt)) for a, b in zip(first, second, strict=True)]
    assert sum(a != b for a, b in pairs) >= 2, "kernels for other sizes are wanted, too"
    assert all(abs(a - b) <= 0.1 * a for a, b in pairs), "rounds are compared by their times"
    assert first[0].prompt != second[0].prompt
    assert max(len(r.prompt) for r in first) == 3000
    assert min(len(r.prompt) for r in first) < 200
    assert {r.output_tokens for r in first} <= set(range(4, 9))
