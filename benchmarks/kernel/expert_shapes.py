"""Published models' experts and their tensor-parallel shards, in the order of their interest."""

from __future__ import annotations

from typing import NamedTuple

ALL_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SOME_TOKENS = (1, 16, 64, 512, 2048, 8192)
FEW_TOKENS = (1, 16, 512, 4096)


class Shape(NamedTuple):
    experts: int
    topk: int
    hidden: int
    inter: int  # of one rank
    tokens: tuple[int, ...]


_MODELS = {
    "qwen3-30b-a3b": Shape(128, 8, 2048, 768, ALL_TOKENS),
    "gpt-oss-20b": Shape(32, 4, 2880, 2880, SOME_TOKENS),  # without biases and clamps
    "mixtral-8x7b": Shape(8, 2, 4096, 14336, SOME_TOKENS),
    "deepseek-v3": Shape(256, 8, 7168, 2048, SOME_TOKENS),
}


def _shard(shape: Shape, ranks: int) -> Shape:
    return shape._replace(inter=shape.inter // ranks, tokens=FEW_TOKENS)


SHAPES: dict[str, Shape] = {
    **_MODELS,
    **{f"{name}-tp{r}": _shard(s, r) for r in (2, 4, 8) for name, s in _MODELS.items()},
}
