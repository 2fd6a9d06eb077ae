"""SGLang's host KV cache (``--enable-hierarchical-cache``) where the device is the host, too."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.pool_host import common, mha


def build_host_pools() -> None:
    """Let SGLang build its host pools without a GPU to pin them for, and copy by ``direct`` I/O."""
    common.ALLOC_MEMORY_FUNCS["cpu"] = allocate
    mha.transfer_kv_direct = copy_rows


def allocate(dims: tuple[int, ...], dtype: torch.dtype, device: str, **_: Any) -> torch.Tensor:
    """Plain memory for a host pool."""
    return torch.empty(dims, dtype=dtype, device=device)


def copy_rows(
    src_layers: list[torch.Tensor],
    dst_layers: list[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy the tokens ``src_indices`` of each layer ``[tokens, heads, head_dim]`` to ``dst_indices``."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]
