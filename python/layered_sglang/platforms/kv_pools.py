"""KV pools of an out-of-tree platform for models with sliding windows or latent attention.

SGLang asks an out-of-tree platform for one pool class and gives it one size. For models whose layers
are partly windowed it would so build a single pool, while its scheduler and radix cache count two.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool


def build_windowed_pools() -> None:
    """Let SGLang build its own two pools for such models, as it does on a GPU."""
    build = KVCacheConfigurator._build_token_to_kv_pool
    if hasattr(build, "__wrapped__"):
        return

    @wraps(build)
    def build_pool(self: KVCacheConfigurator, *, sizes: Any, **kwargs: Any) -> Any:
        if not self.is_hybrid_swa:
            return build(self, sizes=sizes, **kwargs)
        return self._build_hybrid_swa_kv_pool(
            full_max_total_num_tokens=sizes.full_max_total_num_tokens,
            swa_max_total_num_tokens=sizes.swa_max_total_num_tokens,
            mha_pool_class=MHATokenToKVPool,
        )

    KVCacheConfigurator._build_token_to_kv_pool = build_pool


def allocator(size: int, *, page_size: int, kvcache: Any, **kwargs: Any) -> Any:
    """An allocator for ``kvcache``: SGLang's paged one, or for two pools its pair of allocators.

    Args:
        size: tokens of a single pool; two pools know their own sizes.
        page_size: tokens of a page.
        kvcache: the pool that SGLang built.
    """
    if isinstance(kvcache, SWAKVPool):
        from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator

        return SWATokenToKVPoolAllocator(
            kvcache.size, kvcache.size_swa, page_size=page_size, kvcache=kvcache, **kwargs
        )
    from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator

    return PagedTokenToKVPoolAllocator(size, page_size=page_size, kvcache=kvcache, **kwargs)


def latent_pool(size: int, *, index_head_dim: int | None, **kwargs: Any) -> MLATokenToKVPool:
    """SGLang's pool of latent attention.

    Args:
        size: tokens.
        index_head_dim: of sparse attention's indexer, which is not here.
    """
    assert index_head_dim is None, "sparse attention has a pool of its own"
    return MLATokenToKVPool(size, **kwargs)
