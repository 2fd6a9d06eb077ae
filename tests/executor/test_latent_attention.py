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
from sglang.srt.model_executor.forward_batch_info import (  # noqa: E402
    ForwardBatch,
    ForwardMode,
    PPProxyTensors,
)
from sglang.srt.model_executor.forward_context import (  # noqa: E402
    ForwardContext,
    forward_context,
    get_attn_backend,
)

WAYS = latent_attention.AttnForwardMethod
LAYERS = 4
#: Of a head: the part of a query that is not rotated, the rotated one, a value, the cache's vector.
PLAIN, ROTATED, VALUE, NARROW = 2, 1, 2, 4
HEADS = 2


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
    """A layer's attention that notes its calls and chooses as SGLang does on ``fa3``, prefixes of more
    than 100,000 tokens in pieces. Queries, keys and values of a row hold its position."""

    num_local_heads, qk_nope_head_dim, qk_rope_head_dim = HEADS, PLAIN, ROTATED
    v_head_dim, kv_lora_rank, w_scale, use_deep_gemm_bmm = VALUE, NARROW, 1.0, False
    attn_mha, attn_mqa = "wide", "narrow"

    def __init__(self) -> None:
        super().__init__()
        self.alone: list[list[int]] = []
        self.stored: list[list[int]] = []
        self.w_kc = torch.ones(HEADS, PLAIN, NARROW)
        self.w_vc = torch.full((HEADS, NARROW, VALUE), 1 / (PLAIN * NARROW))

    def dispatch_attn_forward_method(self, batch):
        prefix = sum(batch.extend_prefix_lens_cpu)
        if 0 < prefix < 8192:
            return WAYS.MLA
        return WAYS.MHA_ONE_SHOT if prefix <= 100_000 else WAYS.MHA_CHUNKED_KV

    def forward(self, positions, hidden_states, forward_batch, zero_allocator, prev_topk_indices):
        self.alone.append(positions.tolist())
        return positions[:, None].float()

    def forward_normal_prepare(self, positions, hidden_states, forward_batch, zero_allocator):
        assert not forward_batch.mha_one_shot, "keys of the rows alone: a prefix is another part's"
        self.stored.append(forward_batch.out_cache_loc.tolist())
        here = positions[:, None, None].float()
        q = here.repeat(1, HEADS, PLAIN + ROTATED)
        return q, q.clone(), here.repeat(1, HEADS, VALUE), forward_batch

    def o_proj(self, attended):
        return attended[:, :1], None

    # What a cached prefix is expanded with.

    def _get_mla_kv_buffer(self, slots, dtype, batch):
        return torch.zeros(len(slots), NARROW), torch.zeros(len(slots), 1, ROTATED)

    def kv_b_proj(self, narrow):
        return torch.zeros(len(narrow), HEADS * (PLAIN + VALUE)), None

    def _concat_and_cast_mha_k(self, plain, rotated, batch):
        return torch.cat((plain, rotated.expand(-1, HEADS, -1)), -1)

    def _chunked_prefix_attn_mha(self, q, accum_output, accum_lse, forward_batch):
        assert forward_batch.attn_attend_prefix_cache and accum_lse == "lse"
        assert get_attn_backend().name == "cohort"
        return accum_output + 1000


class Stack(torch.nn.Module):
    """A decoder as SGLang's are; ``experts`` notes how many rows come together."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(LAYERS))
        for layer in self.layers:
            layer.self_attn, layer.experts = Attention(), []
        self.start_layer, self.end_layer, self.pp_group = 0, LAYERS, None

    def forward(self, ids, positions, batch, embeds, pp_proxy_tensors=None):
        hidden = ids[:, None].float() if pp_proxy_tensors is None else pp_proxy_tensors["residual"]
        for layer in self.layers[self.start_layer : self.end_layer]:
            hidden = hidden + layer.self_attn(
                positions=positions,
                hidden_states=hidden,
                forward_batch=batch,
                zero_allocator=None,
                prev_topk_indices=None,
            )
            layer.experts.append(hidden.shape[0])
        if self.pp_group.is_last_rank:
            return hidden
        return PPProxyTensors({"hidden_states": hidden, "residual": hidden})


class Backend:
    """Notes its calls; a row's result is its query, which holds its position."""

    token_to_kv_pool = req_to_token_pool = None

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, []

    def init_forward_metadata(self, batch):
        pass

    def forward(self, q, k, v, layer, batch, save_kv_cache, q_rope=None):
        assert not save_kv_cache, "both parts' are stored at once"
        width = VALUE if layer == "wide" else NARROW
        if layer == "narrow":
            assert k is None and v is None and batch._attn_output is None
            assert torch.equal(q[..., :1], PLAIN * q_rope), "projected, and the rotated part is not"
            assert batch.attn_attend_prefix_cache is None, "keys are as the cache has them"
        else:
            assert q_rope is None and batch.attn_attend_prefix_cache is False
            assert k.shape == (*v.shape[:2], PLAIN + ROTATED)
        self.calls.append((layer, q[:, 0, 0].tolist(), None if k is None else len(k)))
        out = q[..., :1].expand(-1, -1, width).reshape(len(q), -1)
        return (out, "lse") if batch.mha_return_lse else out


def executor(
    names: tuple[str, str] = ("fa3", "fa3"), with_decode: bool = True
) -> iteration.LayerGroupExecutor:
    """One that finds as many attention backends as it should make."""
    backends = iter([Backend("cohort"), Backend("decode")][: 1 + with_decode])
    model = SimpleNamespace(
        model=Stack(), lm_head=None, logits_processor=lambda ids, hidden, *_: hidden
    )
    args = SimpleNamespace(enable_lora=False, get_attention_backends=lambda: names)
    runner = SimpleNamespace(
        model=model, server_args=args, _get_attention_backend=lambda **_: next(backends)
    )
    return iteration.LayerGroupExecutor(runner, Architecture(latent=True), with_decode)


def decode_rows() -> ForwardBatch:
    return rows(2, ForwardMode.DECODE, first=50)


def test_prompts_go_the_wide_way_beside_decode_rows_and_all_else_is_done_at_once():
    made = executor()
    state = CohortState(rows(5, ForwardMode.EXTEND))
    decode = decode_rows()
    for group in (LayerGroup(0, 2), LayerGroup(2, LAYERS)):
        out = made.run(decode, state, group, lambda: None)
    cohort, narrow = made.attention.cohort.calls, made.attention.decode.calls
    assert cohort == [("wide", [100.0, 101.0, 102.0, 103.0, 104.0], 5)] * LAYERS
    assert narrow == [("narrow", [150.0 * PLAIN, 151.0 * PLAIN], None)] * LAYERS
    for layer in made.model.layers:
        assert sorted(layer.experts) == [2, 7]
        assert layer.self_attn.stored == [[1000, 1001, 1002, 1003, 1004, 1050, 1051]]
        assert layer.self_attn.alone == [[150, 151]], "decode alone is SGLang's own"
    # Each row carries its own id, and its position once a layer.
    assert out.cohort[:, 0].tolist() == [i + LAYERS * (i + 100) for i in range(5)]
    assert out.decode[:, 0].tolist() == [i + LAYERS * (i + 100) for i in (50, 51)]


def test_apart_from_decode_nothing_is_made_for_its_rows():
    made, state = executor(with_decode=False), CohortState(rows(5, ForwardMode.EXTEND))
    for group in (LayerGroup(0, 2), LayerGroup(2, LAYERS)):
        out = made.run(None, state, group, lambda: None)
    assert out.cohort[:, 0].tolist() == [i + LAYERS * (i + 100) for i in range(5)]
    with pytest.raises(AssertionError, match="apart from decode"):
        prompts = CohortState(rows(5, ForwardMode.EXTEND))
        made.run(decode_rows(), prompts, LayerGroup(0, 2), lambda: None)


def test_behind_a_short_cached_prefix_prompts_are_as_narrow_as_sglangs():
    made = executor()
    state = CohortState(rows(5, ForwardMode.EXTEND, prefix=100))
    made.run(decode_rows(), state, LayerGroup(0, 1), lambda: None)
    assert [call[0] for call in made.attention.cohort.calls] == ["narrow"]
    assert state.carried.hidden[:, 0].tolist() == [i + i + 100 for i in range(5)]


def test_backends_that_want_queries_in_one_get_them_so():
    made = executor(("fa3", "triton"))
    seen = []
    made.attention.decode.forward = lambda q, *_, **more: seen.append((q, more)) or q[..., :NARROW]
    state = CohortState(rows(5, ForwardMode.EXTEND))
    made.run(decode_rows(), state, LayerGroup(0, 1), lambda: None)
    ((q, more),) = seen
    assert q.shape == (2, HEADS, NARROW + ROTATED) and not more
    assert torch.equal(q[..., 0], PLAIN * q[..., NARROW])


@pytest.mark.parametrize(("prefix", "looked_up"), [(0, 0), (100, 0), (9000, 1)])
def test_a_prefix_that_is_expanded_is_looked_up_before_tables_may_change(prefix, looked_up):
    made, order = executor(), []
    cohort = rows(5, ForwardMode.EXTEND, prefix=prefix)

    def look_up():
        order.append(get_attn_backend().name)
        cohort.mha_one_shot_kv_indices = torch.arange(prefix + 5)

    cohort.fetch_mha_one_shot_kv_indices = look_up
    state = CohortState(cohort)
    for group in (LayerGroup(0, 1), LayerGroup(1, 2)):
        made.run(decode_rows(), state, group, lambda: order.append("planned"))
    assert order == ["cohort"] * looked_up + ["planned"] * 2
    keys = [call[2] for call in made.attention.cohort.calls]
    assert keys == [{0: 5, 100: None, 9000: 9005}[prefix]] * 2


def test_a_prefix_too_long_for_that_is_expanded_in_pieces():
    made = executor()
    cohort = rows(5, ForwardMode.EXTEND, prefix=200_000)

    def look_up(device):
        cohort.num_prefix_chunks = 2

    cohort.prepare_chunked_prefix_cache_info = look_up
    state = CohortState(cohort)
    for group in (LayerGroup(0, 1), LayerGroup(1, 2)):
        made.run(decode_rows(), state, group, lambda: None)
    assert [call[0] for call in made.attention.cohort.calls] == ["wide"] * 2
    assert state.carried.hidden[:, 0].tolist() == [i + 2 * (i + 100 + 1000) for i in range(5)]


def test_two_cohorts_in_turn_each_go_their_own_way():
    made = executor()
    narrow = CohortState(rows(5, ForwardMode.EXTEND, prefix=100))
    wide = CohortState(rows(3, ForwardMode.EXTEND, first=20))
    for layer in range(2):
        for state in (narrow, wide):
            made.run(decode_rows(), state, LayerGroup(layer, layer + 1), lambda: None)
    calls = [(call[0], len(call[1])) for call in made.attention.cohort.calls]
    assert calls == [("narrow", 5), ("wide", 3)] * 2


def test_captured_layers_break_at_attention_alone_whichever_way_it_goes(monkeypatch):
    """As a GPU replays: one capture, then two iterations of other parts, the second behind a prefix."""
    made = executor()
    attention, layer = made.attention, made.model.layers[0].self_attn
    calls = []
    monkeypatch.setattr(attention, "_attend_between_graphs", lambda *call: calls.append(call))
    static = rows(8, ForwardMode.EXTEND)
    with forward_context(ForwardContext(attn_backend=attention)), attention.capturing():
        layer(
            positions=static.positions,
            hidden_states=torch.zeros(8, 1),
            forward_batch=static,
            zero_allocator=None,
        )
    (call,) = calls
    assert layer.stored == [list(range(1000, 1008))], "captured"
    # Of what is inside something else the graphs would keep the memory.
    assert sum(isinstance(arg, torch.Tensor) for arg in call) == 4
    out = call[1]
    for cohort, number, prefix in ((5, 2, 0), (3, 2, 100)):
        out.fill_(float("nan"))
        parts = rows(cohort, ForwardMode.EXTEND, prefix=prefix), rows(number, ForwardMode.DECODE)
        made._latent.plan(parts[0])
        attention.set_rows(*parts)
        attention.pad(cohort + number, 8)
        attention._attend(*call)
        attention.set_rows(None, None)
        filled = [100.0 + i for i in range(cohort + number)]
        assert out[:, 0].tolist() == filled + [0.0] * (8 - cohort - number)
    assert [call[0] for call in attention.cohort.calls] == ["wide", "narrow"]
    assert [call[0] for call in attention.decode.calls] == ["narrow"] * 2


@pytest.mark.parametrize("out", [False, True])
def test_each_head_has_weights_of_its_own(out):
    given, weights = torch.randn(5, HEADS, 3), torch.randn(HEADS, 3, 4)
    into = torch.empty(5, HEADS, 4) if out else None
    result = latent_attention.per_head(given, weights, 1.0, into)
    assert torch.allclose(result, torch.einsum("thn,hnm->thm", given, weights), atol=1e-6)
    assert into is None or result is into
