"""Where --moe-kernels makes the scheduler process ours, and what is refused before it starts."""

from __future__ import annotations

import types

import pytest
import torch
from layered_sglang.config import ConfigError, LayeredConfig

launch_server = pytest.importorskip("layered_sglang.launch_server")


def needs(gpu: bool, monkeypatch: pytest.MonkeyPatch, ray: bool = False, **flags: str) -> bool:
    monkeypatch.setattr(launch_server, "_a_gpu_may_use_our_kernels", lambda: gpu)
    args = types.SimpleNamespace(encoder_only=False, smg_grpc_mode=False, use_ray=ray)
    config = LayeredConfig(prefill_schedule="chunked", **flags)
    return launch_server._needs_our_scheduler_process(args, config)


def test_chunked_with_sglangs_kernels_is_a_plain_sglang_server(monkeypatch) -> None:
    assert not needs(True, monkeypatch, moe_kernels="sglang")
    assert not needs(True, monkeypatch, moe_kernels="sglang", ray=True)


def test_auto_needs_it_only_where_our_kernels_may_run(monkeypatch) -> None:
    assert needs(True, monkeypatch)
    assert not needs(False, monkeypatch)
    assert not needs(True, monkeypatch, ray=True)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"moe_kernels": "layered"}, "--moe-kernels layered"),
        ({"layered_trace_file": "f"}, "--layered-trace-file"),
    ],
)
def test_what_was_asked_for_needs_it_or_is_refused(monkeypatch, flags: dict, name: str) -> None:
    assert needs(False, monkeypatch, **flags)
    with pytest.raises(ConfigError, match=f"^{name} works with SGLang's HTTP server only"):
        needs(False, monkeypatch, ray=True, **flags)


def test_layered_is_refused_without_kernels(monkeypatch) -> None:
    from layered_sglang.hooks import server_args

    monkeypatch.setattr(server_args, "why_no_kernels", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    server_args._refuse_device(None)
    monkeypatch.setattr(server_args, "why_no_kernels", lambda device: f"no code for {device.type}")
    for device, asked in (("cpu", None), ("cpu", "cpu"), ("cuda", "cuda")):
        with pytest.raises(ConfigError) as refused:
            server_args._refuse_device(asked)
        assert str(refused.value) == (
            f"--moe-kernels layered cannot compute the experts: no code for {device}; "
            "use --moe-kernels auto or sglang"
        )
