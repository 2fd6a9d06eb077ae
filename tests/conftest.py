"""What ``make test`` runs at once: two workers, a file at a time each."""

from __future__ import annotations

from collections import defaultdict

import pytest

#: Each may run a server, with 4 GB and a core to itself.
WORKERS = 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    import torch

    # Two servers do not fit into one GPU: each takes most of its memory.
    return 0 if torch.cuda.is_available() else WORKERS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that may take longest come first, so that the workers end at about the same time."""
    longest: dict = defaultdict(int)
    for item in items:
        mark = item.get_closest_marker("timeout")
        if mark is not None:
            longest[item.path] = max(longest[item.path], mark.args[0])
    items.sort(key=lambda item: -longest[item.path])
