"""SGLang's KV cache sizing, less what layered prefill needs."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
from sglang.srt.model_executor.cuda_graph_config import Backend

from layered_sglang.executor.memory import MemoryNeeds, RowSizes, memory_needs
from layered_sglang.executor.merged_graphs import sizes_up_to
from layered_sglang.hooks.server_args import layered_config

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner


#: Layers that an EAGLE-3 draft reads, unless its configuration says which.
EAGLE3_LAYERS = 3


class BudgetedKVCacheConfigurator(KVCacheConfigurator):
    """Takes ``needs`` off each budget: SGLang's first one, and the one after graph capture."""

    needs: MemoryNeeds

    @classmethod
    def extend(cls, stock: KVCacheConfigurator, needs: MemoryNeeds) -> BudgetedKVCacheConfigurator:
        names = [f.name for f in fields(KVCacheConfigurator) if f.init]
        configurator = cls(**{name: getattr(stock, name) for name in names})
        configurator.needs = needs
        return configurator

    def config_from_budget(self, budget_bytes: int, **kwargs: Any) -> Any:
        # SGLang's class has slots, which makes a new class of it: no zero-argument super() there.
        ours = self.needs.reserve(self.post_capture_kv_active)
        return KVCacheConfigurator.config_from_budget(self, max(0, budget_bytes - ours), **kwargs)

    def describe(self) -> str:
        """One phrase for the start-up banner."""
        return self.needs.describe(self.post_capture_kv_active)


def needs_of(runner: ModelRunner) -> MemoryNeeds:
    """What the flags and the model ask for, before anything is captured."""
    config, args = layered_config(runner.server_args), runner.server_args
    hf_config = runner.model_config.hf_text_config.to_dict()
    rows = RowSizes.from_config(hf_config, runner.model_config.dtype.itemsize, args.tp_size)
    decode, layers = args.cuda_graph_config.decode, runner.model_config.num_hidden_layers
    speculates = runner.spec_algorithm.is_speculative()
    captures = runner.device == "cuda" and decode.backend == Backend.FULL and not speculates
    batches = list(decode.bs or ()) if captures else []
    merged: list[int] = []
    if batches and args.ep_size == 1:
        merged = sizes_up_to(config.layered_cuda_graph_max_tokens)
    return memory_needs(
        rows,
        config.layered_max_prefill_tokens,
        int(decode.max_bs or 1),
        tuple(merged),
        layers * (len(batches) + 2 * len(merged)),  # merged ones in two parts: attention is between
        layers * len(batches) if config.layered_execution == "overlapped" else 0,
        captured=_captured_layers(runner),
    )


def _captured_layers(runner: ModelRunner) -> int:
    """Layers whose input is kept for a draft model."""
    draft = runner.spec_aux_config
    if not draft.eagle_use_aux_hidden_state:
        return 0
    return len(draft.eagle_aux_hidden_state_layer_ids or ()) or EAGLE3_LAYERS
