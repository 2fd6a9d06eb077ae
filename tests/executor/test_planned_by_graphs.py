"""Attention launched beside graphs reads the batch that was loaded, whatever its backend keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

decode_graphs = pytest.importorskip("layered_sglang.executor.decode_graphs")


class Backend:
    """An attention backend's planning: by size at capture; at replay as `renews` says."""

    def __init__(self, renews: bool) -> None:
        self.renews, self.forward_metadata, self.by_size = renews, None, {}

    def capture(self, size: int) -> None:
        self.forward_metadata = self.by_size[size] = f"graphs of {size}"

    def load(self, size: int) -> None:
        if self.renews:
            self.forward_metadata = self.by_size[size]

    def plan_eagerly(self) -> None:
        self.forward_metadata = "eager"


def composed(renews: bool) -> tuple[SimpleNamespace, list[Backend]]:
    inner = [Backend(renews), Backend(renews)]
    linear = SimpleNamespace(full_attn_backend=inner[0], linear_attn_backend=inner[1])
    return SimpleNamespace(decode_backend=linear), inner


@pytest.mark.parametrize("renews", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_each_backend_holds_the_loaded_batch(renews: bool, several: bool):
    attention, backends = composed(renews) if several else (Backend(renews),) * 2
    backends = backends if several else [attention]
    planned = decode_graphs.PlannedByGraphs(attention)
    for size in (8, 4, 1):  # as SGLang captures: the largest first
        for backend in backends:
            backend.capture(size)
        planned.keep(size)
    for size in (4, 4, 8, 1):
        before = planned.now()
        for backend in backends:
            backend.load(size)
        planned.renew(before, size)
        assert [b.forward_metadata for b in backends] == [f"graphs of {size}"] * len(backends)
        if size == 8:
            for backend in backends:
                backend.plan_eagerly()


def test_backends_without_metadata_have_nothing_to_renew():
    planned = decode_graphs.PlannedByGraphs(SimpleNamespace())
    planned.keep(2)
    planned.renew(planned.now(), 2)
    assert planned.now() == []
