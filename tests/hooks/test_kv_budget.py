"""The KV cache is sized by SGLang, from a budget without what layered prefill needs."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest
from layered_sglang.config import LayeredConfig
from layered_sglang.executor.memory import MemoryNeeds
from layered_sglang.hooks.kv_budget import BudgetedKVCacheConfigurator, needs_of
from layered_sglang.model_zoo import find_preset
from sglang.srt.mem_cache import kv_cache_configurator
from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator

NEEDS = MemoryNeeds(carried=1000, layer=200, experts=30, graphs=4)


def stock(after_capture: bool) -> KVCacheConfigurator:
    values = {f.name: None for f in fields(KVCacheConfigurator) if f.init}
    return KVCacheConfigurator(
        **{**values, "device": "cuda", "post_capture_kv_active": after_capture}
    )


@pytest.mark.parametrize(("after_capture", "left"), [(False, 8996), (True, 8770)])
def test_every_budget_is_less_by_it(monkeypatch, after_capture, left) -> None:
    for name in ("mambaish_config", "hybrid_gdn_config"):
        monkeypatch.setattr(kv_cache_configurator, name, lambda _config: None)
    asked = []
    monkeypatch.setattr(
        KVCacheConfigurator,
        "config_from_budget",
        lambda self, budget, **kwargs: asked.append((self.device, budget, kwargs)),
    )
    configurator = BudgetedKVCacheConfigurator.extend(stock(after_capture), NEEDS)
    configurator.config_from_budget(10_000)
    configurator.config_from_budget(10_000, cap_tokens=77)
    configurator.config_from_budget(100)
    assert asked == [("cuda", left, {}), ("cuda", left, {"cap_tokens": 77}), ("cuda", 0, {})]


def runner(
    device: str,
    backend: str = "full",
    max_graph_rows: int = 4096,
    execution: str = "merged",
    captured: bool | None = None,
) -> SimpleNamespace:
    """``captured``: whether a draft model reads hidden states of some layers; None: there is no draft."""
    config = find_preset("qwen3-30b-a3b").config
    decode = SimpleNamespace(bs=[1, 8, 32], max_bs=32, backend=backend)
    args = SimpleNamespace(
        tp_size=1,
        ep_size=1,
        cuda_graph_config=SimpleNamespace(decode=decode),
        _layered_config=LayeredConfig(
            layered_cuda_graph_max_tokens=max_graph_rows, layered_execution=execution
        ),
    )
    model_config = SimpleNamespace(
        hf_text_config=SimpleNamespace(to_dict=lambda: config),
        dtype=SimpleNamespace(itemsize=2),
        num_hidden_layers=48,
    )
    return SimpleNamespace(
        server_args=args,
        model_config=model_config,
        device=device,
        spec_algorithm=SimpleNamespace(is_speculative=lambda: captured is not None),
        spec_aux_config=SimpleNamespace(
            eagle_use_aux_hidden_state=bool(captured), eagle_aux_hidden_state_layer_ids=None
        ),
    )


def test_graphs_are_counted_where_they_are_captured() -> None:
    assert needs_of(runner("cpu")).graphs == 0
    assert needs_of(runner("cuda", backend="disabled")).graphs == 0
    all_graphs = needs_of(runner("cuda")).graphs
    of_decode_alone = needs_of(runner("cuda", max_graph_rows=0)).graphs
    assert all_graphs > 2 * of_decode_alone > 48 * 3 * 2**19
    assert needs_of(runner("cuda")).carried == 2 * 2 * 8192 * 2048 * 2
    overlapped = needs_of(runner("cuda", execution="overlapped"))
    assert overlapped.graphs > all_graphs + 2**30 and overlapped.lane > 2**29


def test_what_a_draft_reads_is_kept_and_its_decode_needs_no_layer_graphs() -> None:
    plain, draft, eagle3 = (needs_of(runner("cuda", captured=c)) for c in (None, False, True))
    assert draft.graphs == eagle3.graphs == 0 < plain.graphs
    assert draft.carried == plain.carried
    assert eagle3.carried == plain.carried * (2 + 3) // 2
