"""Rows of prompts and of decode in one batch: what layers are told, and what attention gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

mixed_attention = pytest.importorskip("layered_sglang.executor.mixed_attention")
iteration = pytest.importorskip("layered_sglang.executor.iteration")

LAYER = SimpleNamespace(tp_q_head_num=2, v_head_dim=3)


class Recorder:
    """An attention backend that keeps what it was given, and answers with its own number."""

    token_to_kv_pool = req_to_token_pool = None

    def __init__(self, number: float) -> None:
        self.number = number

    def forward(self, q, k, v, layer, rows, save_kv_cache, **kwargs):
        self.given = {"q": q, "k": k, "v": v, **kwargs}
        return torch.full((q.shape[0], 6), self.number)


def rows(tokens: int, first: int = 0):
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

    ids = torch.arange(first, first + tokens)
    return ForwardBatch(
        forward_mode=ForwardMode.EXTEND,
        batch_size=1,
        input_ids=ids,
        positions=ids + 100,
        out_cache_loc=ids + 1000,
        req_pool_indices=ids[:1],
        seq_lens=ids[:1],
        seq_lens_sum=tokens,
        num_token_non_padded_cpu=tokens,
    )


def test_each_part_gets_its_rows_of_everything_that_has_rows():
    cohort, decode = Recorder(1.0), Recorder(2.0)
    attention = mixed_attention.MixedAttention(cohort, decode)
    attention.set_rows(rows(5), rows(2))
    q, k, v = (torch.randn(8, 2) for _ in range(3))  # the last row is padding
    rotated, sinks = torch.randn(8, 4), torch.randn(2)
    out = attention.forward(q, k, v, LAYER, None, q_rope=rotated, k_rope=None, sinks=sinks)
    assert out[:, 0].tolist() == [1.0] * 5 + [2.0] * 2 + [0.0]
    for part, given in ((slice(0, 5), cohort.given), (slice(5, 7), decode.given)):
        for name, tensor in {"q": q, "k": k, "v": v, "q_rope": rotated}.items():
            assert torch.equal(given[name], tensor[part]), name
        assert given["k_rope"] is None and given["sinks"] is sinks


@pytest.mark.parametrize("as_decode", [False, True])
def test_layers_of_latent_attention_are_told_that_all_rows_decode(as_decode):
    cohort, decode = rows(5), rows(2, first=50)
    merged = iteration.merge_inputs(cohort, decode, as_decode)
    assert merged.forward_mode.is_decode() is as_decode
    assert cohort.forward_mode.is_extend()
    assert merged.input_ids.tolist() == [0, 1, 2, 3, 4, 50, 51]
    assert merged.positions.tolist() == [100, 101, 102, 103, 104, 150, 151]
    assert merged.out_cache_loc.tolist() == [1000, 1001, 1002, 1003, 1004, 1050, 1051]
    assert merged.num_token_non_padded_cpu == 7
