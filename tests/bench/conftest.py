"""What the commands change of the process is put back."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(autouse=True)
def signals():
    """``main`` sets the handlers of SIGINT and SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
