"""What ``--layer-group-policy slo`` promises, whatever the GPU, the model and the load."""

from __future__ import annotations

from pathlib import Path

from checks import (
    LayerCase,
    check_iterations_are_even_and_few,
    check_nobody_waits_for_nobody,
    check_one_layer_at_least,
    check_target_is_kept,
    check_the_cheap_end_is_taken,
    layer_groups,
)
from hypothesis import given
from hypothesis import strategies as st
from layered_sglang.scheduling import CohortWork, DecodeWork, LayerGroup, SloLayerGroups
from worlds import decodes, estimator, estimators, targets, works

cases = st.builds(LayerCase, estimators, works, decodes, targets)


@given(cases)
def test_every_layer_runs_once_in_order(case):
    groups = layer_groups(SloLayerGroups(case.estimator), case)
    run = [layer for g in groups for layer in range(g.start, g.end)]
    assert run == list(range(case.estimator.num_layers))


@given(estimators, works, targets, st.lists(decodes, min_size=1, max_size=60))
def test_every_layer_runs_once_in_order_while_the_decode_batch_changes(est, work, target, batches):
    policy, layer, i = SloLayerGroups(est), 0, 0
    while layer < est.num_layers:
        case = LayerCase(est, work, batches[min(i, len(batches) - 1)], target)
        group = policy.next_layer_group(case.view(layer))
        assert group.start == layer < group.end <= est.num_layers
        layer, i = group.end, i + 1


@given(cases)
def test_the_target_is_kept_wherever_one_layer_keeps_it(case):
    check_target_is_kept(SloLayerGroups(case.estimator), case)


@given(cases)
def test_a_prompt_advances_by_a_layer_even_where_none_keeps_the_target(case):
    check_one_layer_at_least(SloLayerGroups(case.estimator), case)


@given(cases)
def test_a_cohorts_iterations_are_as_few_as_the_target_allows_and_even(case):
    check_iterations_are_even_and_few(SloLayerGroups(case.estimator), case)


@given(cases)
def test_the_rest_runs_where_it_costs_less_than_another_iteration(case):
    check_the_cheap_end_is_taken(SloLayerGroups(case.estimator), case)


@given(cases, st.data())
def test_nobody_decodes_so_nothing_waits(case, data):
    layer = data.draw(st.integers(0, case.estimator.num_layers - 1))
    check_nobody_waits_for_nobody(SloLayerGroups(case.estimator), case, layer)


@given(cases)
def test_the_same_view_gives_the_same_layer_group(case):
    one, other = (layer_groups(SloLayerGroups(case.estimator), case) for _ in range(2))
    assert one == other


@given(cases, st.floats(1.0, 4.0))
def test_a_looser_target_never_takes_more_iterations(case, factor):
    if case.target is None:
        return
    looser = LayerCase(case.estimator, case.cohort, case.decode, case.target * factor)
    policy = SloLayerGroups(case.estimator)
    assert len(layer_groups(policy, looser)) <= len(layer_groups(policy, case))


def test_a_long_prompt_beside_sixteen_streams_takes_several_iterations_on_an_h200():
    case = LayerCase(
        estimator("H200"), CohortWork.of_prompt(8192), DecodeWork(16, 32_000), target=0.030
    )
    groups = layer_groups(SloLayerGroups(case.estimator), case)
    assert 2 < len(groups) < 24
    loose = LayerCase(case.estimator, case.cohort, case.decode, 10.0)
    assert layer_groups(SloLayerGroups(case.estimator), loose) == [LayerGroup(0, 48)]


def test_the_example_in_the_docs_is_true(capsys):
    page = (Path(__file__).parents[2] / "docs/planner.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    said = [line.split("# ")[1].split(":")[0] for line in code.splitlines() if "# " in line]
    assert [f"{float(p):.4f}" for p in printed[:2]] == said[:2]
    assert printed[2:] == said[2:] and len(said) == 3
