"""Which way prompts and decode rows pass latent attention in a layer that both are in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

latent_attention = pytest.importorskip("layered_sglang.executor.latent_attention")
iteration = pytest.importorskip("layered_sglang.executor.iteration")
from layered_sglang.executor.architectures import Architecture  # noqa: E402
from layered_sglang.executor.cohort_state import CohortState  # noqa: E402
from layered_sglang.scheduling import LayerGroup  # noqa: E402
from sglang.srt.layers.communicator import AttentionInputs, get_attn_tp_context  # noqa: E402
from sglang.srt.model_executor.forward_batch_info import (  # noqa: E402
    ForwardBatch,
    ForwardMode,
    PPProxyTensors,
)
from sglang.srt.model_executor.forward_context import get_attn_backend  # noqa: E402

WAYS = latent_attention.AttnForwardMethod
LAYERS = 4


def rows(tokens: int, mode: ForwardMode, first: int = 0, prefix: int = 0) -> ForwardBatch:
    ids = torch.arange(first, first + tokens)
    return ForwardBatch(
        forward_mode=mode,
        batch_size=1,
        input_ids=ids,
        positions=ids + 100,
        out_cache_loc=ids + 1000,
        req_pool_indices=ids[:1],
        seq_lens=ids[:1],
        seq_lens_sum=tokens,
        num_token_non_padded_cpu=tokens,
        extend_prefix_lens_cpu=[prefix],
        extend_seq_lens_cpu=[tokens],
    )


class Attention(torch.nn.Module):
    """A layer's attention that notes its calls, chooses as SGLang does on ``fa3``, and answers with the
    position of each row."""

    def __init__(self, q_lora_rank: int | None) -> None:
        super().__init__()
        self.q_lora_rank, self.calls = q_lora_rank, []

    def prepare_qkv_latent(self, hidden_states, forward_batch):
        return 10 * hidden_states

    def dispatch_attn_forward_method(self, batch):
        prefix = sum(batch.extend_prefix_lens_cpu or [])
        wide = batch.forward_mode.is_extend() and (prefix == 0 or prefix >= 8192)
        return WAYS.MHA_ONE_SHOT if wide else WAYS.MLA

    def forward(self, positions, hidden_states, forward_batch, zero_allocator, prev_topk_indices):
        zero_allocator.allocate(2)
        if self.q_lora_rank is not None:
            latents = get_attn_tp_context().fetch_qkv_latent()
            assert torch.equal(latents, 10 * hidden_states)
        way, backend = self.dispatch_attn_forward_method(forward_batch), get_attn_backend()
        self.calls.append((way.name, getattr(backend, "name", "both"), positions.tolist()))
        return positions[:, None].float()


class Stack(torch.nn.Module):
    """A decoder as SGLang's are; ``experts`` notes how many rows come together."""

    def __init__(self, q_lora_rank: int | None) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(LAYERS))
        for layer in self.layers:
            layer.self_attn, layer.experts = Attention(q_lora_rank), []
        self.start_layer, self.end_layer, self.pp_group = 0, LAYERS, None

    def forward(self, ids, positions, batch, embeds, pp_proxy_tensors=None):
        hidden = ids[:, None].float() if pp_proxy_tensors is None else pp_proxy_tensors["residual"]
        zeros = latent_attention.BumpAllocator(2 * LAYERS, torch.float32, "cpu")
        for layer in self.layers[self.start_layer : self.end_layer]:
            attention, context = layer.self_attn, get_attn_tp_context()
            context.set_attn_inputs(AttentionInputs(hidden, batch, attention.prepare_qkv_latent))
            hidden = hidden + attention(
                positions=positions,
                hidden_states=hidden,
                forward_batch=batch,
                zero_allocator=zeros,
                prev_topk_indices=None,
            )
            context.clear_attn_inputs()
            layer.experts.append(hidden.shape[0])
        if self.pp_group.is_last_rank:
            return hidden
        return PPProxyTensors({"hidden_states": hidden, "residual": hidden})


def backend(name: str) -> SimpleNamespace:
    planned = []
    return SimpleNamespace(
        name=name,
        planned=planned,
        init_forward_metadata=planned.append,
        token_to_kv_pool=None,
        req_to_token_pool=None,
    )


def executor(q_lora_rank: int | None = None) -> iteration.LayerGroupExecutor:
    backends = iter([backend("cohort"), backend("decode")])
    model = SimpleNamespace(
        model=Stack(q_lora_rank), lm_head=None, logits_processor=lambda ids, hidden, *_: hidden
    )
    runner = SimpleNamespace(
        model=model,
        server_args=SimpleNamespace(enable_lora=False),
        _get_attention_backend=lambda **_: next(backends),
    )
    return iteration.LayerGroupExecutor(runner, Architecture(latent=True))


@pytest.mark.parametrize("q_lora_rank", [None, 64])
def test_prompts_go_the_wide_way_beside_decode_rows_and_experts_see_all_at_once(q_lora_rank):
    made = executor(q_lora_rank)
    state = CohortState(rows(5, ForwardMode.EXTEND))
    decode = rows(2, ForwardMode.DECODE, first=50)
    for group in (LayerGroup(0, 2), LayerGroup(2, LAYERS)):
        out = made.run(decode, state, group, lambda: None)
    wide = ("MHA_ONE_SHOT", "cohort", [100, 101, 102, 103, 104])
    narrow = ("MLA", "decode", [150, 151])
    for index, layer in enumerate(made.model.layers):
        active, passing = [wide, narrow], [narrow]
        want = [*active, *passing] if index < 2 else [*passing, *active]
        assert layer.self_attn.calls == want, index
        assert sorted(layer.experts) == [2, 7]
    # Each row carries its own id, and its position once a layer.
    assert out.cohort[:, 0].tolist() == [i + LAYERS * (i + 100) for i in range(5)]
    assert out.decode[:, 0].tolist() == [i + LAYERS * (i + 100) for i in (50, 51)]


def test_behind_a_short_cached_prefix_prompts_are_as_narrow_as_sglangs():
    made = executor()
    made.run(
        rows(2, ForwardMode.DECODE, first=50),
        CohortState(rows(5, ForwardMode.EXTEND, prefix=100)),
        LayerGroup(0, 1),
        lambda: None,
    )
    first = made.model.layers[0].self_attn.calls
    assert [call[:2] for call in first] == [("MLA", "cohort"), ("MLA", "decode")]


@pytest.mark.parametrize(("prefix", "looked_up"), [(0, 0), (100, 0), (9000, 1)])
def test_a_prefix_that_is_expanded_is_looked_up_before_tables_may_change(prefix, looked_up):
    made, order = executor(), []
    cohort = rows(5, ForwardMode.EXTEND, prefix=prefix)
    cohort.fetch_mha_one_shot_kv_indices = lambda: order.append(get_attn_backend().name)
    decode = rows(2, ForwardMode.DECODE, first=50)
    state = CohortState(cohort)
    for group in (LayerGroup(0, 1), LayerGroup(1, 2)):
        made.run(decode, state, group, lambda: order.append("planned"))
    assert order == ["cohort"] * looked_up + ["planned"] * 2


class Graphs:
    """Layer graphs of up to 4096 rows."""

    def __init__(self) -> None:
        self.seen = []

    def fits(self, cohort, decode):
        return cohort.input_ids.shape[0] + decode.input_ids.shape[0] <= 4096

    def run(self, layers, cohort, decode, both):
        self.seen.append(cohort.attn_attend_prefix_cache)
        out = torch.zeros(cohort.input_ids.shape[0] + decode.input_ids.shape[0], 1)
        return iteration.CarriedRows(out, out)


@pytest.mark.parametrize(
    ("tokens", "prefix", "replays"),
    [(4000, 0, 1), (4000, 8000, 1), (400, 9000, 1), (1600, 9000, 1), (1900, 9000, 0), (5000, 0, 0)],
)
def test_graphs_are_for_rows_that_are_narrow_or_have_few_pairs(tokens, prefix, replays):
    made = executor()
    made._merged_graphs = graphs = Graphs()
    cohort = rows(tokens, ForwardMode.EXTEND, prefix=prefix)
    cohort.fetch_mha_one_shot_kv_indices = lambda: None
    cohort.set_attn_attend_prefix_cache(False)  # it was wide in the iteration before
    decode = rows(2, ForwardMode.DECODE, first=6000)
    made.run(decode, CohortState(cohort), LayerGroup(0, 1), lambda: None)
    assert graphs.seen == [None] * replays, "None: keys are as the cache has them"
    calls = made.model.layers[0].self_attn.calls
    assert len(calls) == 2 * (1 - replays)
