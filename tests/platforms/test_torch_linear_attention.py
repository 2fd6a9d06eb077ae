"""Linear attention against its definition, however prompts are cut and whoever decodes beside them."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from torch.nn.functional import conv1d, silu

ours = pytest.importorskip("layered_sglang.platforms.torch_linear_attention")

HEADS, VALUE_HEADS, KEY, VALUE, TAPS, SLOTS = 2, 4, 8, 6, 4, 5
CHANNELS = 2 * HEADS * KEY + VALUE_HEADS * VALUE


def by_definition(q, k, v, log_rate, bias, a, b, state):
    """The gated delta rule, one head and one token at a time; ``state`` [value heads, value, key]."""
    out, state = torch.zeros(len(q), VALUE_HEADS, VALUE), state.clone()
    for t in range(len(q)):
        for head in range(VALUE_HEADS):
            of_keys = head // (VALUE_HEADS // HEADS)
            query, key = (x[t, of_keys] / x[t, of_keys].norm() for x in (q, k))
            softplus = math.log1p(math.exp(float(a[t, head] + bias[head])))
            decay = math.exp(-math.exp(float(log_rate[head])) * softplus)
            written = 1 / (1 + math.exp(-float(b[t, head])))
            # S <- S (decay (I - written k k^T)) + written v k^T, as the paper has it.
            forget = decay * (torch.eye(KEY) - written * torch.outer(key, key))
            state[head] = state[head] @ forget + written * torch.outer(v[t, head], key)
            out[t, head] = state[head] @ query / KEY**0.5
    return out, state


@pytest.fixture(params=[64, 5], ids=lambda chunk: f"chunks of {chunk}")
def layer(request, monkeypatch):
    """Weights of a layer, a request's projections, and pools whose slots are not empty."""
    monkeypatch.setattr(ours, "CHUNK", request.param)
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "weight": normal(CHANNELS, TAPS),
        "log_rate": normal(VALUE_HEADS) - 1,
        "bias": normal(VALUE_HEADS),
        "x": normal(19, CHANNELS),
        "a": normal(19, VALUE_HEADS),
        "b": normal(19, VALUE_HEADS),
        "conv": normal(SLOTS, CHANNELS, TAPS - 1),
        "states": normal(SLOTS, VALUE_HEADS, VALUE, KEY),
    }


def prompts(layer, conv, states, slots, rows, continues):
    """What SGLang's backend does with the rows ``rows[i]`` of requests in ``slots[i]``."""
    starts = torch.tensor([0, *torch.tensor([len(r) for r in rows]).cumsum(0)])
    picked = torch.cat([torch.arange(r.start, r.stop) for r in rows])
    slots = torch.tensor(slots)
    qkv = ours.convolve_prompts(
        layer["x"][picked].T,
        layer["weight"],
        None,
        conv_states=conv,
        query_start_loc=starts,
        seq_lens_cpu=[len(r) for r in rows],
        cache_indices=slots,
        has_initial_state=torch.tensor(continues),
        activation="silu",
    ).T
    q, k, v = split(qkv)
    g, beta = ours.gates(layer["log_rate"], layer["a"][picked], layer["b"][picked], layer["bias"])
    out, _, _ = ours.attend_prompts(
        q[None],
        k[None],
        v[None],
        g,
        beta,
        initial_state=states,
        initial_state_indices=slots,
        cu_seqlens=starts,
    )
    return out[0]


def split(qkv):
    q, k, v = qkv.split((HEADS * KEY, HEADS * KEY, VALUE_HEADS * VALUE), dim=-1)
    return q.view(-1, HEADS, KEY), k.view(-1, HEADS, KEY), v.view(-1, VALUE_HEADS, VALUE)


def decode(layer, conv, states, slots, rows):
    slots = torch.tensor(slots)
    qkv = ours.convolve_decode(
        layer["x"][rows], conv, layer["weight"], None, "silu", conv_state_indices=slots
    )
    out = torch.full((len(rows), 1, VALUE_HEADS, VALUE), math.nan)
    ours.attend_decode(
        mixed_qkv=qkv,
        a=layer["a"][rows],
        b=layer["b"][rows],
        A_log=layer["log_rate"],
        dt_bias=layer["bias"],
        scale=KEY**-0.5,
        initial_state=states,
        out=out,
        ssm_state_indices=slots,
        use_qk_l2norm_in_kernel=True,
    )
    return out[:, 0]


def test_a_prompt_is_its_definition(layer):
    conv, states = layer["conv"].clone(), layer["states"].clone()
    states[3] = 0  # as SGLang clears it for a new request
    got = prompts(layer, conv, states, [3], [range(19)], [False])
    padded = torch.cat((torch.zeros(TAPS - 1, CHANNELS), layer["x"])).T
    qkv = silu(conv1d(padded[None], layer["weight"][:, None], groups=CHANNELS))[0].T
    rates = layer["log_rate"], layer["bias"], layer["a"], layer["b"]
    wanted, state = by_definition(*split(qkv), *rates, torch.zeros(VALUE_HEADS, VALUE, KEY))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[3], state, atol=1e-5, rtol=1e-5)
    assert torch.equal(conv[3], layer["x"][-3:].T), "the last inputs, for the next token"
    for untouched in (0, 1, 2, 4):
        assert torch.equal(conv[untouched], layer["conv"][untouched])
        assert torch.equal(states[untouched], layer["states"][untouched])


@pytest.mark.parametrize("cut", [1, 2, 7, 18])
def test_a_prompt_in_two_parts_gives_the_same_numbers(layer, cut):
    """The second part beside another request, and the last token by decode."""
    whole_conv, whole = layer["conv"].clone(), layer["states"].clone()
    wanted = prompts(layer, whole_conv, whole, [3], [range(19)], [False])
    conv, states = layer["conv"].clone(), layer["states"].clone()
    first = prompts(layer, conv, states, [3], [range(cut)], [False])
    both = prompts(layer, conv, states, [1, 3], [range(4, 9), range(cut, 18)], [True, True])
    last = decode(layer, conv, states, [3], [18])
    got = torch.cat((first, both[5:], last))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[3], whole[3], atol=1e-5, rtol=1e-5)
    assert torch.equal(conv[3], whole_conv[3])


def test_padding_reads_and_writes_nothing(layer):
    conv, states = layer["conv"].clone(), layer["states"].clone()
    alone = decode(layer, conv.clone(), states.clone(), [2], [7])
    padded = decode(layer, conv, states, [2, -1], [7, 8])
    assert torch.equal(padded[:1], alone) and not padded[1].any()
    assert torch.equal(states[[0, 1, 3, 4]], layer["states"][[0, 1, 3, 4]])
    assert torch.equal(conv[[0, 1, 3, 4]], layer["conv"][[0, 1, 3, 4]])


def test_projections_are_sorted_by_what_they_are():
    """Each key head has its queries, keys, values and gates together; each number names itself."""
    each = VALUE_HEADS // HEADS
    names = [
        [f"{what}{head}.{i}" for what, count in counts for i in range(count)]
        for counts in (
            (("q", KEY), ("k", KEY), ("v", each * VALUE), ("z", each * VALUE)),
            (("b", each), ("a", each)),
        )
        for head in range(HEADS)
    ]
    qkvz, ba = (list(chain(*part)) for part in (names[:HEADS], names[HEADS:]))
    numbers = torch.arange(float(len(qkvz)))[None], torch.arange(float(len(ba)))[None]
    qkv, z, b, a = ours.split_projections(*numbers, HEADS, VALUE_HEADS, KEY, VALUE)

    def named(tensor, source):
        return [source[int(i)] for i in tensor.flatten()]

    def wanted(what, count):
        return [f"{what}{head}.{i}" for head in range(HEADS) for i in range(count)]

    assert named(qkv, qkvz) == wanted("q", KEY) + wanted("k", KEY) + wanted("v", each * VALUE)
    assert named(z, qkvz) == wanted("z", each * VALUE) and z.shape == (1, VALUE_HEADS, VALUE)
    assert named(b, ba) == wanted("b", each) and named(a, ba) == wanted("a", each)


def test_the_norm_is_gated():
    x, gate, weight = torch.randn(3, 5), torch.randn(3, 5), torch.randn(5)
    got = ours.rms_norm_gated(x, gate, weight, None, "silu", eps=1e-6)
    root = (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(got, x / root * weight * gate / (1 + (-gate).exp()))
