"""What a layer-group policy promises, for any model and any cohort."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layered_sglang.scheduling import (
    CohortView,
    FixedLayerGroups,
    LayerGroup,
    make_policy,
    split_layers,
)

layers = st.integers(1, 200)
tokens = st.integers(1, 100_000)
group_tokens = st.integers(1, 20_000)
fixed_count = st.none() | st.integers(1, 300)


@given(layers, st.data())
def test_split_covers_every_layer_once_in_order_and_balanced(num_layers, data):
    count = data.draw(st.integers(1, num_layers))
    groups = split_layers(num_layers, count)
    assert len(groups) == count
    assert [layer for g in groups for layer in range(g.start, g.end)] == list(range(num_layers))
    sizes = [g.end - g.start for g in groups]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


@pytest.mark.parametrize("count", [0, -1, 9])
def test_split_refuses_impossible_counts(count):
    with pytest.raises(ValueError, match=r"between 1 and the number of layers \(8\)"):
        split_layers(8, count)


def run(policy, num_layers: int, cohort_tokens: int, decoding: list[int]) -> list[LayerGroup]:
    """Layer groups until the end, with ``decoding[i]`` running requests in iteration i."""
    done: list[LayerGroup] = []
    while not done or done[-1].end < num_layers:
        i = min(len(done), len(decoding) - 1)
        start = done[-1].end if done else 0
        done.append(
            policy.next_layer_group(CohortView(num_layers, start, cohort_tokens, decoding[i]))
        )
        assert len(done) <= num_layers, "the policy does not advance"
    return done


@given(layers, tokens, group_tokens, fixed_count, st.lists(st.integers(0, 64), min_size=1))
def test_fixed_runs_every_layer_once_in_order(n, cohort, per_group, count, decoding):
    groups = run(FixedLayerGroups(per_group, count), n, cohort, decoding)
    assert [layer for g in groups for layer in range(g.start, g.end)] == list(range(n))


@given(layers, tokens, group_tokens)
def test_fixed_follows_the_papers_rule_while_others_decode(n, cohort, per_group):
    groups = run(FixedLayerGroups(per_group), n, cohort, [1])
    assert len(groups) == min(n, max(1, -(-cohort // per_group)))
    assert tuple(groups) == split_layers(n, len(groups))


@given(layers, tokens, group_tokens, st.integers(1, 300))
def test_a_fixed_number_of_groups_is_never_above_the_layers(n, cohort, per_group, count):
    assert len(run(FixedLayerGroups(per_group, count), n, cohort, [1])) == min(n, count)


@given(layers, tokens, group_tokens, st.data())
def test_nobody_decodes_so_nothing_waits(n, cohort, per_group, data):
    start = data.draw(st.integers(0, n - 1))
    view = CohortView(n, start, cohort, decode_requests=0)
    assert FixedLayerGroups(per_group).next_layer_group(view) == LayerGroup(start, n)


@given(layers, tokens, group_tokens, fixed_count, st.integers(0, 64), st.data())
def test_deterministic(n, cohort, per_group, count, decoding, data):
    view = CohortView(n, data.draw(st.integers(0, n - 1)), cohort, decoding)
    one, other = (make_policy("fixed", per_group, count) for _ in range(2))
    assert one.next_layer_group(view) == other.next_layer_group(view)


def test_policy_modules_know_neither_torch_nor_sglang():
    import subprocess
    import sys

    code = (
        "import sys, layered_sglang.scheduling, layered_sglang.config;"
        "sys.exit(any(m.split('.')[0] in ('torch', 'sglang', 'numpy') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
