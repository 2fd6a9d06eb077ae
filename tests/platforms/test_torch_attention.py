"""Attention with sinks and windows against its definition, one query and one head at a time."""

from __future__ import annotations

import math

import pytest
import torch

attend = pytest.importorskip("layered_sglang.platforms.torch_attention").attend


def by_definition(q, k, v, scaling, window, sinks):
    new, heads, _ = q.shape
    out = torch.zeros(new, heads, v.shape[-1])
    for i in range(new):
        at = len(k) - new + i
        first = 0 if window < 0 else max(0, at - window)
        for head in range(heads):
            kv = head // (heads // k.shape[1])
            weights = [
                math.exp(scaling * float(q[i, head] @ k[j, kv])) for j in range(first, at + 1)
            ]
            total = sum(weights) + (0 if sinks is None else math.exp(float(sinks[head])))
            for j, weight in enumerate(weights):
                out[i, head] += weight / total * v[first + j, kv]
    return out


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [-1, 0, 5, 100])
@pytest.mark.parametrize(("length", "new"), [(1, 1), (19, 1), (19, 7), (19, 19)])
def test_attention_is_its_definition(length, new, window, sinks):
    generator = torch.Generator().manual_seed(length + new)
    q = torch.randn(new, 4, 8, generator=generator)
    k = torch.randn(length, 2, 8, generator=generator)
    v = torch.randn(length, 2, 6, generator=generator)
    logits = torch.tensor([2.0, -1.0, 0.0, 0.5]) if sinks else None
    got = attend(q, k, v, 0.3, window, logits)
    torch.testing.assert_close(got, by_definition(q, k, v, 0.3, window, logits))
