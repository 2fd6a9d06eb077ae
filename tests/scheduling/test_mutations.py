"""A broken rule is noticed: each mutation of the policies' source makes the check of that rule fail."""

from __future__ import annotations

import importlib
import itertools
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import checks
import pytest
from checks import LayerCase
from layered_sglang.scheduling import (
    CohortWork,
    DecodeWork,
    Estimator,
    Planner,
    SloLayerGroups,
    admission,
    launches,
    policy,
)
from layered_sglang.scheduling import estimator as estimates
from traffic import overload, storm
from worlds import DENSE, MOE, History, Prompt, estimator, serve

POLICY, ADMISSION = policy.__name__, admission.__name__
LAUNCHES, ESTIMATOR = launches.__name__, estimates.__name__


@contextmanager
def mutant(module: str, old: str, new: str) -> Iterator[types.ModuleType]:
    """The module with ``old`` replaced by ``new`` in its source."""
    original = importlib.import_module(module)
    source = Path(original.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} is not once in {module}: adapt the mutation"
    changed = types.ModuleType(f"{module}_mutant")
    sys.modules[changed.__name__] = changed  # dataclasses look their module up
    try:
        exec(compile(source.replace(old, new), changed.__name__, "exec"), changed.__dict__)
        yield changed
    finally:
        del sys.modules[changed.__name__]


def layer_cases() -> Iterator[LayerCase]:
    """A grid of loads and targets, with hosts that are in the way and hosts that are not."""
    rng = random.Random(6)
    estimators = [
        estimator("H200", MOE),
        estimator("H200", MOE, graph_rows=0),
        estimator("L40S", DENSE, overlap=False),
        estimator("A100", MOE, margin=0.3),
    ]
    grid = itertools.product(estimators, (1, 16, 128), (200, 3000, 8192))
    for est, requests, tokens in grid:
        decode, cohort = DecodeWork(requests, requests * 2000), CohortWork.of_prompt(tokens)
        one = est.merged(decode, cohort).anywhere().seconds(1)
        for target in (None, 0.9 * one, 1.05 * one, *(one * rng.uniform(1.1, 8) for _ in "abc")):
            yield LayerCase(est, cohort, decode, target)


def on_layers(check: Callable[..., None]) -> Callable[[types.ModuleType], None]:
    def run(module: types.ModuleType) -> None:
        for case in layer_cases():
            check(module.SloLayerGroups(case.estimator), case)

    return run


def idle(module: types.ModuleType) -> None:
    for case in layer_cases():
        checks.check_nobody_waits_for_nobody(module.SloLayerGroups(case.estimator), case, 3)


def planner(module: types.ModuleType, est: Estimator) -> Planner:
    groups = SloLayerGroups(est)
    return Planner(groups, module.AdmitByBenefit(est, groups), est)


def history(module: types.ModuleType, prompts: list[Prompt], **options) -> History:
    return serve(planner(module, estimator()), prompts, **options)


def patience(module: types.ModuleType) -> None:
    traffic = overload(seconds=23)
    checks.check_patience(history(module, traffic), traffic)


def overtaking(module: types.ModuleType) -> None:
    est = estimator()
    run = planner(module, est)
    checks.check_overtaking_is_bounded(serve(run, storm()), run)


def overtaking_by_need(module: types.ModuleType) -> None:
    est = estimator()
    checks.check_only_much_shorter_ones_overtake(history(module, storm()), est)
    # The host would launch a prefill of 1500 tokens as long as one of 3000.
    middling = [Prompt(0.2 * i + late, n) for i in range(9) for late, n in ((0, 1500), (0.001, 30))]
    done = history(module, middling, itl_target=0.012)
    checks.check_only_much_shorter_ones_overtake(done, est)


def overtaking_by_priority(module: types.ModuleType) -> None:
    run = planner(module, estimator())
    checks.check_overtaking_is_bounded(serve(run, storm(priorities=3)), run)


def mixed(priorities: int = 3, seed: int = 7) -> list[Prompt]:
    rng = random.Random(seed)
    sizes = (60, 400, 900, 3000, 8000, 20_000)
    return [
        Prompt(rng.uniform(0, 3), rng.choice(sizes), rng.randrange(priorities)) for _ in range(120)
    ]


def priorities(module: types.ModuleType) -> None:
    behind_a_long_one = [Prompt(0, 30_000, 0), Prompt(0.02, 29_000, 2), Prompt(0.03, 100, 1)]
    for traffic in (mixed(), storm(priorities=3), behind_a_long_one):
        done = history(module, traffic, max_tokens=32_768)
        checks.check_priorities_are_never_passed(done)


def between_chunks(module: types.ModuleType) -> None:
    late = [Prompt(0.01 * i, tokens, 1) for i, tokens in enumerate((900, 100, 20_000, 300), 1)]
    done = history(module, [Prompt(0, 30_000, 0), *late], max_tokens=4096)
    checks.check_priorities_go_between_chunks(done)


def order(module: types.ModuleType) -> None:
    checks.check_order_is_kept(history(module, mixed(priorities=1), keep_order=True))


def fit(module: types.ModuleType) -> None:
    checks.check_cohorts_fit(history(module, mixed(), max_tokens=4096))


def target(module: types.ModuleType) -> None:
    for milliseconds in (8, 12):
        prompts = mixed(priorities=1)[:30]
        done = history(module, prompts, itl_target=milliseconds / 1e3)
        checks.check_cohorts_keep_the_target(done, estimator())


def joining(module: types.ModuleType) -> None:
    for a, b in itertools.product((50, 500, 2000, 8000), repeat=2):
        done = history(module, [Prompt(0, a), Prompt(0, b)], itl_target=None, max_tokens=16_384)
        checks.check_joining_pays(done, estimator())


def launch_quantile(module: types.ModuleType) -> None:
    checks.check_launches_are_covered_and_bounded(module.LaunchCorrection())


def host_and_gpu(module: types.ModuleType) -> None:
    checks.check_host_and_gpu_are_told_apart(module.Estimator(estimator().model))


floor = on_layers(checks.check_one_layer_at_least)
kept = on_layers(checks.check_target_is_kept)
even = on_layers(checks.check_iterations_are_even_and_few)
end = on_layers(checks.check_the_cheap_end_is_taken)

MUTATIONS = [
    (POLICY, "max(1, most))", "most)", floor),
    (POLICY, "max(1, most))", "max(2, most))", floor),
    (POLICY, "if most >= left or", "if most + 1 >= left or", kept),
    (POLICY, "if most >= left or", "if most < left or", kept),
    (POLICY, "(1 + self.estimator.margin)", "1", kept),
    (POLICY, "line.anywhere().seconds(rest) > view.itl_target", "False", kept),
    (POLICY, "most = line.anywhere()", "most = line", kept),
    (
        POLICY,
        "iterations = -(-left // max(1, most))",
        "iterations = left",
        even,
    ),
    (
        POLICY,
        "start + -(-left // iterations)",
        "start + max(1, most)",
        even,
    ),
    (
        POLICY,
        "or self._end_is_cheaper(line, left, view)",
        "",
        end,
    ),
    (
        POLICY,
        "if view.decode.requests == 0:\n            return LayerGroup(start, view.num_layers)",
        "",
        idle,
    ),
    (ADMISSION, "PATIENCE = 20.0", "PATIENCE = float('inf')", patience),
    (ADMISSION, "-prompt.waited, i)", "prompt.waited, i)", patience),
    (ADMISSION, "OVERTAKE_SHARE = 0.5", "OVERTAKE_SHARE = float('inf')", overtaking),
    (ADMISSION, "- begun.delayed", "", overtaking),
    (ADMISSION, "begun.priority, cap, allowed)", "begun.priority, cap)", overtaking),
    (
        ADMISSION,
        "self.estimator.need(begun.work)",
        "self.estimator.prefill(begun.work)",
        overtaking_by_need,
    ),
    (ADMISSION, "OVERTAKE_RATIO = 4.0", "OVERTAKE_RATIO = 1.5", overtaking_by_need),
    (ADMISSION, "return (-prompt.priority, 1,", "return (0, 1,", priorities),
    (ADMISSION, "prompt.priority < begun.priority or ", "", overtaking_by_priority),
    (ADMISSION, "view.keep_order or priority < stays", "view.keep_order", priorities),
    (ADMISSION, "prompt.priority > begun.priority and", "False and", between_chunks),
    (ADMISSION, "and prompt.work.tokens <= cap", "", between_chunks),
    (
        ADMISSION,
        "stays = prompt.priority\n                continue\n            longer",
        "continue\n            longer",
        priorities,
    ),
    (ADMISSION, "view.keep_order or priority < stays", "priority < stays", order),
    (ADMISSION, "return list(indices)", "pass", order),
    (ADMISSION, "if together.tokens > cap:", "if False:", fit),
    (ADMISSION, "cap //= 2\n", "break\n", target),
    (ADMISSION, " or self._one_layer_breaks(view, together)", "", target),
    (ADMISSION, "delays > saves", "delays < saves", joining),
    (ADMISSION, "(members + 1 + behind)", "behind", joining),
    (LAUNCHES, "COVERED if error > math.log1p(self.spread) else ", "", launch_quantile),
    (LAUNCHES, "else COVERED - 1", "else -COVERED", launch_quantile),
    (LAUNCHES, "* (1 + self.spread)", "", launch_quantile),
    (LAUNCHES, "min(max(error, -STALL), STALL)", "error", launch_quantile),
    (LAUNCHES, "min(max(factor, 1 / LIMIT), LIMIT)", "factor", launch_quantile),
    (
        LAUNCHES,
        "factor = self.graphs if graphed else self.eager",
        "factor = self.graphs",
        launch_quantile,
    ),
    (ESTIMATOR, "if host > self.correction", "if 0 > self.correction", host_and_gpu),
    (ESTIMATOR, "self.correction.cohort, host)", "self.correction.cohort)", host_and_gpu),
    (ESTIMATOR, "or not self.model.overlap", "or self.model.overlap", host_and_gpu),
]


@cache
def holds(module: str, check: Callable[[types.ModuleType], None]) -> None:
    """The check passes as long as the rule is whole."""
    check(importlib.import_module(module))


@pytest.mark.parametrize(
    "module, old, new, check",
    MUTATIONS,
    ids=[f"{m.rsplit('.', 1)[1]}: {o.strip()} -> {n.strip()}" for m, o, n, _ in MUTATIONS],
)
def test_a_broken_rule_is_noticed(module, old, new, check):
    holds(module, check)
    with mutant(module, old, new) as broken, pytest.raises((AssertionError, ZeroDivisionError)):
        check(broken)
