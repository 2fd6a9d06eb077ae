"""A GPU buffer that shows what was left unwritten in it and what was written beside it."""

from __future__ import annotations

import torch

GUARD = 256  # bytes on either side of a buffer


class Guarded:
    """A poisoned buffer on the GPU (every byte 0xff: NaN in bf16) between two poisoned guards."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = torch.Size(shape).numel() * dtype.itemsize
        self.memory = torch.full((size + 2 * GUARD,), 0xFF, dtype=torch.uint8, device="cuda")
        self.buffer = self.memory[GUARD : GUARD + size].view(dtype).view(shape)

    def guards_are_intact(self) -> bool:
        guards = torch.cat([self.memory[:GUARD], self.memory[-GUARD:]])
        return bool((guards == 0xFF).all())
