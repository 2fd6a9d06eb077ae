"""Batch sizes that decode graphs are captured for; a batch between two of them runs as the larger one."""

from __future__ import annotations

from itertools import chain


def stock_sizes(most: int) -> list[int]:
    """SGLang 0.5.17's own, up to ``most``."""
    sizes = chain((1, 2, 4, 8, 12), range(16, 257, 8), range(272, 512, 16), range(512, most, 32))
    return _up_to(most, sizes)


def fine_sizes(most: int) -> list[int]:
    """Closer ones for small batches, up to ``most``: those SGLang takes for speculative decoding.

    Rows that fill a batch up choose experts as others do. Of 128 experts (top 8) 5 rows reach 35 and
    8 rows 51, so a batch of 5 that runs as 8 loads half as many again.
    """
    sizes = chain(range(1, 9), range(10, 33, 2), range(40, 65, 4), range(72, 257, 8))
    return _up_to(most, chain(sizes, range(272, most, 16)))


def _up_to(most: int, sizes: chain[int]) -> list[int]:
    return sorted({size for size in sizes if size < most} | {most})
