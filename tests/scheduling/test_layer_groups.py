"""What the paper's layer groups promise, for any model and any cohort."""

from __future__ import annotations

import subprocess
import sys

import pytest
from checks import LayerCase, check_nobody_waits_for_nobody, layer_groups
from hypothesis import given
from hypothesis import strategies as st
from layered_sglang.scheduling import (
    CohortView,
    CohortWork,
    DecodeWork,
    FixedLayerGroups,
    LayerGroup,
    split_layers,
)
from worlds import decodes, estimators, works

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
    cohort = CohortWork.of_prompt(cohort_tokens)
    while not done or done[-1].end < num_layers:
        requests = decoding[min(len(done), len(decoding) - 1)]
        start = done[-1].end if done else 0
        view = CohortView(num_layers, start, cohort, DecodeWork(requests, 100 * requests))
        done.append(policy.next_layer_group(view))
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


@given(estimators, works, decodes, group_tokens, fixed_count, st.data())
def test_nobody_decodes_so_nothing_waits(estimator, work, decode, per_group, count, data):
    case = LayerCase(estimator, work, decode, None)
    layer = data.draw(st.integers(0, estimator.num_layers - 1))
    check_nobody_waits_for_nobody(FixedLayerGroups(per_group, count), case, layer)


@given(estimators, works, decodes, group_tokens, fixed_count)
def test_fixed_is_deterministic(estimator, work, decode, per_group, count):
    case = LayerCase(estimator, work, decode, None)
    one, other = (layer_groups(FixedLayerGroups(per_group, count), case) for _ in range(2))
    assert one == other


def test_policy_modules_know_neither_torch_nor_sglang():
    code = (
        "import sys, layered_sglang.scheduling, layered_sglang.config;"
        "import layered_sglang.scheduling.profile, layered_sglang.scheduling.devices;"
        "sys.exit(any(m.split('.')[0] in ('torch', 'sglang', 'numpy') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
