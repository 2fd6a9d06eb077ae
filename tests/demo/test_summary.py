"""The demo's closing table."""

from __future__ import annotations

import pytest
from layered_sglang.demo.scenario import PROMPTS, SYSTEMS, prompt_text
from layered_sglang.demo.summary import ON_CPU, ON_GPU, Measured, percentile, remarks, table

LAYERED = Measured("layered prefill", (0.02,) * 98 + (0.1, 0.2), (1.0, 2.0), "abc")
FIRST = Measured("prefill first", (0.02,) * 99 + (1.234,), (0.5, 0.6), "abc")


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (75, 3), (99, 4), (100, 4), (1, 1)])
def test_percentile_is_a_value_of_the_sample(percent, expected):
    assert percentile([4, 1, 3, 2], percent) == expected


def test_percentile_of_one_value():
    assert percentile([7.0], 99) == 7.0


def test_the_table_has_a_row_a_system_in_milliseconds_and_seconds():
    lines = table([LAYERED, FIRST])
    assert lines[2].split() == ["layered", "prefill", "23", "100", "200", "1.50", "2.00"]
    assert lines[3].split() == ["prefill", "first", "32", "20", "1234", "0.55", "0.60"]
    assert max(map(len, lines)) <= 100
    # Each number ends under the end of its heading.
    for heading, number in (("mean", "23"), ("P99", "100"), ("max", "200")):
        end = lines[1].index(heading) + len(heading)
        assert lines[2][:end].endswith(number)


def test_the_remarks_compare_the_answers_and_name_the_device():
    longer = Measured("x", (0.1,), (0.1,), LAYERED.text + "d")
    assert (
        "the same under all of them (3 tokens"
        in remarks([LAYERED, longer], on_gpu=False, busy=False)[0]
    )
    other = Measured("x", (0.1,), (0.1,), "other")
    assert "differ" in remarks([LAYERED, other], on_gpu=False, busy=False)[0]
    assert remarks([LAYERED], on_gpu=True, busy=False) == list(ON_GPU)
    assert remarks([LAYERED], on_gpu=False, busy=False) == list(ON_CPU)
    assert "rough" in remarks([LAYERED], on_gpu=True, busy=True)[0]
    assert max(map(len, remarks([LAYERED, other], on_gpu=False, busy=True))) <= 100


def test_every_system_gets_the_same_prompts_of_the_stated_sizes():
    assert len({system.name for system in SYSTEMS}) == 3
    for prompt in PROMPTS:
        text = prompt_text(prompt)
        # A byte is a token of the tiny model.
        assert len(text.encode()) == prompt.tokens and text == prompt_text(prompt)
    assert len({prompt_text(prompt)[:16] for prompt in PROMPTS}) == len(PROMPTS)
