"""What is measured beside requests: the GPUs of the servers, not their neighbours'."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from layered_sglang.bench.running.measure import Gpus

JOULES = [1.0, 20.0, 300.0]


@pytest.fixture
def three_gpus(monkeypatch):
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(JOULES),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}a-b",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: int(JOULES[handle] * 1000),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


@pytest.mark.parametrize(
    ("visible", "joules"),
    [
        (None, 321.0),
        ("0,1,2", 321.0),
        ("1", 20.0),
        ("2, 0", 301.0),
        ("GPU-1a", 20.0),
        ("0,7,1", 1.0),  # as CUDA: what follows an unknown name is not seen
        ("", None),
    ],
)
def test_energy_is_that_of_the_visible_gpus(visible, joules, three_gpus, monkeypatch):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Gpus().energy() == joules


def test_no_driver_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert len(Gpus()) == 0
    assert Gpus().energy() is None
