"""The check that SGLang is the one the hooks were written for, and can fail."""

from __future__ import annotations

import pkgutil

import pytest
from layered_sglang.config import ConfigError
from layered_sglang.hooks import pinned


@pytest.fixture(scope="module", autouse=True)
def sglang_imported():
    pytest.importorskip("sglang.srt.managers.scheduler")


def test_the_installed_sglang_is_the_pinned_one():
    pinned.check_pinned()


@pytest.mark.parametrize("target", pinned.PINNED)
def test_a_missing_function_is_named(target, monkeypatch):
    owner, _, name = target.replace(":", ".").rpartition(".")
    monkeypatch.delattr(pkgutil.resolve_name(owner), name)
    with pytest.raises(ConfigError) as error:
        pinned.check_pinned()
    # An inherited function of the same name is found in its place, and takes other arguments.
    assert str(error.value).startswith(
        (f"{owner}.{name} is missing from this sglang", f"{owner}.{name} takes (")
    )


@pytest.mark.parametrize("target", pinned.PINNED)
def test_other_parameters_are_named(target, monkeypatch):
    owner, _, name = target.replace(":", ".").rpartition(".")
    monkeypatch.setattr(pkgutil.resolve_name(owner), name, lambda self, surprise: None)
    with pytest.raises(ConfigError) as error:
        pinned.check_pinned()
    assert str(error.value).startswith(f"{owner}.{name} takes (surprise)")


def test_another_version_is_refused(monkeypatch):
    import sglang

    monkeypatch.setattr(sglang, "__version__", "0.5.18")
    with pytest.raises(ConfigError, match=r"works with sglang 0\.5\.17, found 0\.5\.18"):
        pinned.check_pinned()
