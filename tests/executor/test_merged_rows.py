"""Rows of prompts and of decode in one batch: what layers are told, and what attention gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

mixed_attention = pytest.importorskip("layered_sglang.executor.mixed_attention")
iteration = pytest.importorskip("layered_sglang.executor.iteration")
radix_linear_attention = pytest.importorskip("sglang.srt.layers.radix_linear_attention")
memory_pool = pytest.importorskip("sglang.srt.mem_cache.memory_pool")

LAYER = SimpleNamespace(tp_q_head_num=2, v_head_dim=3)


class Recorder:
    """An attention backend that keeps what it was given, and answers with its own number."""

    token_to_kv_pool = req_to_token_pool = None

    def __init__(self, number: float) -> None:
        self.number = number

    def forward(self, q, k, v, layer, rows, save_kv_cache, **kwargs):
        self.given = {"q": q, "k": k, "v": v, **kwargs}
        self.stores = save_kv_cache
        return torch.full((q.shape[0], 6), self.number)


class InPlace(Recorder):
    """One that writes where the batch says, as FlashAttention does."""

    def forward(self, q, k, v, layer, rows, *args, **kwargs):
        return rows._attn_output.view(-1, 2, 3).copy_(
            super().forward(q, k, v, layer, rows, *args).view(-1, 2, 3)
        )


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
    sinks = torch.randn(2)
    out = attention.forward(q, k, v, LAYER, None, sinks=sinks)
    assert out[:, 0].tolist() == [1.0] * 5 + [2.0] * 2 + [0.0]
    for part, given in ((slice(0, 5), cohort.given), (slice(5, 7), decode.given)):
        for name, tensor in {"q": q, "k": k, "v": v}.items():
            assert torch.equal(given[name], tensor[part]), name
        assert given["sinks"] is sinks


def test_backends_may_write_their_part_of_the_result_themselves():
    attention = mixed_attention.MixedAttention(InPlace(1.0), InPlace(2.0))
    parts = rows(5), rows(2)
    attention.set_rows(*parts)
    out = attention.forward(*(torch.randn(8, 2) for _ in range(3)), LAYER, None)
    assert out[:, 5].tolist() == [1.0] * 5 + [2.0] * 2 + [0.0]
    attention.set_rows(None, None)
    assert all(part._attn_output is None for part in parts)


def test_captured_layers_share_views_and_a_result_whose_padding_is_zero(monkeypatch):
    """As a GPU replays: three captured layers, the first two at the same addresses."""
    attention = mixed_attention.MixedAttention(Recorder(1.0), InPlace(2.0))
    calls = []
    monkeypatch.setattr(attention, "_attend_between_graphs", lambda *call: calls.append(call))
    qkv = [torch.randn(8, 2) for _ in range(3)]
    elsewhere = [torch.randn(8, 2), *qkv[1:]]
    with attention.capturing():
        outs = [attention.forward(*given, LAYER, None) for given in (qkv, qkv, elsewhere)]
    assert len({out.data_ptr() for out in outs}) == 1
    # Of what is inside something else the graphs would keep the memory.
    assert [sum(isinstance(arg, torch.Tensor) for arg in call) for call in calls] == [4] * 3
    outs[0].fill_(float("nan"))  # of a batch without padding
    seen = []
    for cohort, decode in ((rows(5), rows(2)), (rows(3), rows(1))):
        attention.set_rows(cohort, decode)
        end = cohort.input_ids.shape[0] + decode.input_ids.shape[0]
        attention.pad(end, 8)
        for call, given in zip(calls, (qkv, qkv, elsewhere), strict=True):
            attention._attend(*call)
            n = cohort.input_ids.shape[0]
            assert torch.equal(attention.cohort.given["q"], given[0][:n])
            assert torch.equal(attention.decode.given["v"], given[2][n:end])
            seen.append(attention.cohort.given["q"])
        assert outs[0][:, 0].tolist() == [1.0] * n + [2.0] * (end - n) + [0.0] * (8 - end)
        attention.set_rows(None, None)
    assert seen[0] is seen[1] and seen[1] is not seen[2] and seen[3].shape[0] == 3


class LinearRecorder(Recorder):
    """The same of linear attention, whose backends give ``[1, rows, value heads, head_v_dim]``."""

    def forward(self, *, layer, forward_batch, mixed_qkv, a, b):
        self.given = {"mixed_qkv": mixed_qkv, "a": a, "b": b}
        return torch.full((1, mixed_qkv.shape[0], 3, 2), self.number)


@pytest.mark.parametrize("captured", [False, True])
def test_linear_attention_is_split_into_its_parts_too(monkeypatch, captured):
    layer = radix_linear_attention.RadixLinearAttention(0, 1, 1, 3, 4, 4, 2)
    attention = mixed_attention.MixedAttention(LinearRecorder(1.0), LinearRecorder(2.0))
    inputs = {name: torch.randn(8, w) for name, w in {"mixed_qkv": 14, "a": 3, "b": 3}.items()}
    calls = []
    if captured:
        monkeypatch.setattr(attention, "_attend_between_graphs", lambda *call: calls.append(call))
        with attention.capturing():
            out = attention.forward(layer=layer, forward_batch=None, **inputs)
        assert sum(isinstance(arg, torch.Tensor) for arg in calls[0]) == 4
        out.fill_(float("nan"))
        attention.set_rows(rows(5), rows(2))
        attention.pad(7, 8)
        attention._attend(*calls[0])
    else:
        attention.set_rows(rows(5), rows(2))
        out = attention.forward(layer=layer, forward_batch=None, **inputs)
    assert out.shape == (1, 8, 3, 2)
    assert out[0, :, 2, 1].tolist() == [1.0] * 5 + [2.0] * 2 + [0.0]
    for part, backend in ((slice(0, 5), attention.cohort), (slice(5, 7), attention.decode)):
        for name, tensor in inputs.items():
            assert torch.equal(backend.given[name], tensor[part]), name


def test_keys_and_values_of_both_parts_are_stored_at_once():
    pool = memory_pool.MHATokenToKVPool(
        size=64, page_size=1, dtype=torch.float32, head_num=1, head_dim=3, layer_num=1,
        device="cpu", enable_memory_saver=False,
    )  # fmt: skip
    cohort, decode = Recorder(1.0), Recorder(2.0)
    cohort.token_to_kv_pool = pool
    attention = mixed_attention.MixedAttention(cohort, decode)
    layer = SimpleNamespace(
        **vars(LAYER), layer_id=0, is_cross_attention=False, k_scale=None, v_scale=None
    )
    attention.set_rows(rows(5), rows(2))
    q, k, v = torch.randn(7, 6), torch.randn(7, 1, 3), torch.randn(7, 1, 3)
    places = torch.tensor([9, 8, 7, 6, 5, 40, 41])
    attention.forward(q, k, v, layer, SimpleNamespace(out_cache_loc=places))
    keys, values = pool.get_kv_buffer(0)
    assert torch.equal(keys[places], k) and torch.equal(values[places], v)
    assert not cohort.stores and not decode.stores
    attention.forward(q, k, v, layer, None, k_descale=1.0)  # the backend has to scale them
    assert cohort.stores and decode.stores


def test_what_layers_read_of_merged_rows():
    cohort, decode = rows(5), rows(2, first=50)
    merged = iteration.merge_inputs(cohort, decode)
    assert merged.forward_mode.is_extend()
    assert merged.input_ids.tolist() == [0, 1, 2, 3, 4, 50, 51]
    assert merged.positions.tolist() == [100, 101, 102, 103, 104, 150, 151]
    assert merged.out_cache_loc.tolist() == [1000, 1001, 1002, 1003, 1004, 1050, 1051]
    assert merged.num_token_non_padded_cpu == 7


@pytest.mark.parametrize(("room", "fits"), [(6, False), (7, True)])
def test_adapters_of_more_rows_than_prefill_graphs_have_need_buffers_of_their_own(room, fits):
    from sglang.srt.lora.lora_manager import LoRAManager

    cohort, decode = rows(5), rows(2, first=50)
    cohort.lora_ids, decode.lora_ids = ["first"], [None, "first"]
    cohort.extend_num_tokens, decode.batch_size = 5, 2
    cohort.extend_seq_lens_cpu, cohort.extend_seq_lens = [5], torch.tensor([5])
    merged = iteration.merge_inputs(cohort, decode)
    iteration._merge_adapters(merged, cohort, decode)
    assert merged.lora_ids == ["first", None, "first"]
    assert merged.extend_seq_lens_cpu == merged.extend_seq_lens.tolist() == [5, 1, 1]
    graphs = SimpleNamespace(prefill_cuda_graph_max_bs=8, prefill_cuda_graph_max_tokens=room)
    manager = SimpleNamespace(lora_backend=graphs, enable_dp_attention=False)
    assert LoRAManager.can_use_prefill_cuda_graph(manager, merged) == fits
