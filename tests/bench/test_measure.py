"""What is measured beside requests: the GPUs of the servers, not their neighbours'."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from layered_sglang.bench.running.measure import Gpus, Meter

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


def test_a_run_has_what_its_server_logged_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    log = tmp_path / "server.log"
    log.write_text("Decode batch, #running-req: 99, token usage: 0.99, #queue-req: 99\n")
    with Meter(Gpus(), log) as meter, open(log, "a") as server:
        server.write("Prefill batch, token usage: 0.10, #running-req: 1, #queue-req: 4\n")
        server.write("Decode batch, #running-req: 3, swa token usage: 0.50, token usage: 0.20\n")
    assert meter.result()["sampled"] == {
        "running_requests": {"mean": 2.0, "max": 3.0},
        "queued_requests": {"mean": 4.0, "max": 4.0},
        "kv_use": {"mean": 0.15, "max": 0.2},
    }


def test_another_s_endpoint_tells_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Meter(Gpus(), None) as meter:
        pass
    assert meter.result() == {"energy_j": None, "sampled": {}}
