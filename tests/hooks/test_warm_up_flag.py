"""Whether a server is told to send itself our warm-up's prompts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

server_args = pytest.importorskip("layered_sglang.hooks.server_args")


@pytest.mark.parametrize(
    ("gpu", "skip", "workers", "asked", "sent"),
    [
        (True, False, 1, None, "layered_prefill"),
        (True, False, 1, "mine", "mine,layered_prefill"),
        (True, True, 1, None, None),
        (False, False, 1, "mine", "mine"),
        (True, False, 2, "mine", "mine"),
    ],
)
def test_warm_up(gpu, skip, workers, asked, sent, monkeypatch, caplog):
    monkeypatch.setattr(server_args.torch.cuda, "is_available", lambda: gpu)
    flags = SimpleNamespace(warmups=asked, skip_server_warmup=skip, tokenizer_worker_num=workers)
    server_args._add_warm_up(flags)
    assert flags.warmups == sent
    assert ("--tokenizer-worker-num 2: " in caplog.text) == (workers > 1)
