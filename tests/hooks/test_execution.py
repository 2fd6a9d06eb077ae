"""--layered-execution: what it cannot partition is refused in one line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from layered_sglang.config import LayeredConfig, StartRefused
from layered_sglang.hooks import model_runner
from layered_sglang.hooks.model_runner import LayeredModelRunner

OVERLAPPED = LayeredConfig(layered_execution="overlapped")


def runner(tp_size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(server_args=SimpleNamespace(tp_size=tp_size), gpu_id=0)


def test_merged_partitions_nothing() -> None:
    assert LayeredModelRunner._partitioning(runner(), LayeredConfig()) is None


def test_several_ranks_are_refused() -> None:
    with pytest.raises(StartRefused, match=r"runs on one GPU: .* use merged with --tp"):
        LayeredModelRunner._partitioning(runner(tp_size=2), OVERLAPPED)


def test_decode_gets_48_of_132_multiprocessors(monkeypatch) -> None:
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _gpu: properties)
    monkeypatch.setattr(model_runner, "split_device", lambda sms: f"{sms} and the rest")
    assert LayeredModelRunner._partitioning(runner(), OVERLAPPED) == "48 and the rest"

    def fail(_sms: int) -> None:
        raise RuntimeError("cuGreenCtxCreate failed: CUDA_ERROR_NOT_SUPPORTED")

    monkeypatch.setattr(model_runner, "split_device", fail)
    with pytest.raises(
        StartRefused, match=r"cannot partition this GPU: cuGreenCtxCreate .* use merged"
    ):
        LayeredModelRunner._partitioning(runner(), OVERLAPPED)
