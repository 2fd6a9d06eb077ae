"""SGLang's LoRA adapters (``--lora-backend torch_native``) where there is no memory to pin."""

from __future__ import annotations

from typing import Any

import torch


class _Unpinned:
    """torch, except that what it makes is never pinned."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def tensor(self, *args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(*args, **kwargs)

    def zeros(self, *args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*args, **kwargs)


def leave_adapters_unpinned() -> None:
    """Let SGLang's adapters, which pin what a GPU will read, do without."""
    from sglang.srt.lora import layers
    from sglang.srt.lora.backend import torch_backend

    for module in (layers, torch_backend):
        module.torch = _Unpinned()
    torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor
