"""Flags: impossible values end in one line that says what, why and what is allowed."""

from __future__ import annotations

import argparse

import pytest
from layered_sglang import config
from layered_sglang.config import ConfigError, LayeredConfig


def parse(*argv: str) -> LayeredConfig:
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    return config.from_namespace(parser.parse_args(argv))


def test_defaults_are_the_dataclass_defaults():
    assert parse() == LayeredConfig()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--layer-group-tokens", "0"), "--layer-group-tokens must be at least 1, got 0"),
        (("--layer-group-tokens", "-5"), "--layer-group-tokens must be at least 1, got -5"),
        (("--num-layer-groups", "0"), "--num-layer-groups must be at least 1, got 0"),
        (
            ("--layered-max-prefill-tokens", "0"),
            "--layered-max-prefill-tokens must be at least 1, got 0",
        ),
        (
            ("--itl-slo-ms", "-3"),
            "--itl-slo-ms must be a positive number of milliseconds, got -3.0",
        ),
        (
            ("--itl-slo-ms", "nan"),
            "--itl-slo-ms must be a positive number of milliseconds, got nan",
        ),
        (
            ("--itl-slo-ms", "20", "--layer-group-policy", "fixed"),
            "--itl-slo-ms has no effect with layer group policy fixed",
        ),
        (
            ("--itl-slo-ms", "20", "--layer-group-tokens", "100"),
            "--itl-slo-ms has no effect with layer group policy fixed",
        ),
        (
            ("--cost-profile", "h200.json", "--num-layer-groups", "4"),
            "--cost-profile has no effect with layer group policy fixed",
        ),
        (
            ("--layer-group-tokens", "100", "--layer-group-policy", "slo"),
            "--layer-group-tokens has no effect with layer group policy slo",
        ),
    ],
)
def test_impossible_values_are_refused_in_one_line(argv, message):
    with pytest.raises(ConfigError) as error:
        parse(*argv)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "policy"),
    [
        ((), "slo"),
        (("--itl-slo-ms", "30"), "slo"),
        (("--layer-group-tokens", "100"), "fixed"),
        (("--num-layer-groups", "4"), "fixed"),
        (("--layer-group-policy", "fixed"), "fixed"),
    ],
)
def test_the_policy_is_slo_unless_layer_groups_are_asked_for_by_size(argv, policy):
    assert parse(*argv).policy == policy


def test_unknown_choice_lists_what_there_is(capsys):
    with pytest.raises(SystemExit):
        parse("--layer-group-policy", "greedy")
    assert "choose from" in capsys.readouterr().err
