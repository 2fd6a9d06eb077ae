"""Linear attention (gated delta nets, arXiv 2412.06464) in plain PyTorch.

SGLang has it as Triton kernels only. These have the kernels' arguments and results; a state is changed
in place, in the slot that a request has in the pool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import silu, softplus

#: Tokens of a prompt that are computed at once.
CHUNK = 64


def replace_linear_attention_kernels() -> None:
    """Put ours in the kernels' place; to be called before SGLang imports its attention backends."""
    from sglang.kernels.ops.attention import triton_gdn_fused_proj
    from sglang.kernels.ops.attention.fla import (
        chunk,
        fused_gdn_gating,
        fused_norm_gate,
        fused_recurrent,
        layernorm_gated,
    )
    from sglang.kernels.ops.mamba import causal_conv1d_triton

    causal_conv1d_triton.causal_conv1d_fn = convolve_prompts
    causal_conv1d_triton.causal_conv1d_update = convolve_decode
    chunk.chunk_gated_delta_rule = attend_prompts
    fused_gdn_gating.fused_gdn_gating = gates
    fused_norm_gate.rms_norm_gated = rms_norm_gated
    fused_recurrent.fused_recurrent_gated_delta_rule_packed_decode = attend_decode
    layernorm_gated.rms_norm_gated = rms_norm_then_gate
    triton_gdn_fused_proj.fused_qkvzba_split_reshape_cat = split_projections
    triton_gdn_fused_proj.fused_qkvzba_split_reshape_cat_contiguous = split_plain_projections


def split_projections(
    qkvz: torch.Tensor,
    ba: torch.Tensor,
    heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort a checkpoint's projections, which lie together by key head.

    Args:
        qkvz: ``[tokens, 2 * heads * key_dim + 2 * value_heads * value_dim]``.
        ba: ``[tokens, 2 * value_heads]``.

    Returns:
        Queries, keys and values of all heads ``[tokens, 2 * heads * key_dim + value_heads * value_dim]``;
        the output's gate ``[tokens, value_heads, value_dim]``; what is written to the state and how it
        decays, each ``[tokens, value_heads]``.
    """
    tokens, each = qkvz.shape[0], value_heads // heads
    parts = (key_dim, key_dim, each * value_dim, each * value_dim)
    q, k, v, z = qkvz.view(tokens, heads, -1).split(parts, dim=-1)
    b, a = ba.view(tokens, heads, -1).split((each, each), dim=-1)
    qkv = torch.cat([part.reshape(tokens, -1) for part in (q, k, v)], dim=-1)
    return (
        qkv,
        z.reshape(tokens, value_heads, value_dim),
        b.reshape(tokens, value_heads),
        a.reshape(tokens, value_heads),
    )


def split_plain_projections(
    qkvz: torch.Tensor,
    ba: torch.Tensor,
    heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of projections that lie one behind the other, as Qwen3.5 has them."""
    qkv, z = qkvz.split(
        (2 * heads * key_dim + value_heads * value_dim, value_heads * value_dim), dim=-1
    )
    b, a = (part.contiguous() for part in ba.split(value_heads, dim=-1))
    return qkv.contiguous(), z.reshape(-1, value_heads, value_dim), b, a


def convolve_prompts(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    conv_states: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: list[int],
    cache_indices: torch.Tensor,
    has_initial_state: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """Convolve each channel of each prompt along its tokens.

    Args:
        x: ``[channels, tokens]``, the prompts one behind the other.
        weight: ``[channels, taps]``; ``bias`` ``[channels]``.
        conv_states: ``[slots, channels, taps - 1]``, the last inputs of each request; changed in place.
        query_start_loc: ``[requests + 1]``, where each prompt begins.
        cache_indices: ``[requests]``, their slots.
        has_initial_state: ``[requests]``, whether the prompt goes on from what its slot holds.

    Returns:
        ``[channels, tokens]``.
    """
    starts = query_start_loc.tolist()
    requests = zip(cache_indices.tolist(), has_initial_state.tolist(), strict=True)
    parts = []
    for i, (slot, continues) in enumerate(requests):
        state = conv_states[slot]
        before = state if continues else torch.zeros_like(state)
        out, last = _convolve(x[:, starts[i] : starts[i + 1]], before, weight, bias)
        state.copy_(last)
        parts.append(out)
    return torch.cat(parts, dim=1)


def convolve_decode(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    *,
    conv_state_indices: torch.Tensor,
) -> torch.Tensor:
    """The same for one new token of each request: ``x`` and the result are ``[requests, channels]``.

    Slot −1 is padding here and in :func:`attend_decode`: nothing is read, and zeros are given.
    """
    real, slots = _without_padding(conv_state_indices)
    out = torch.zeros_like(x)
    new, conv_state[slots] = _convolve(x[real, :, None], conv_state[slots], weight, bias)
    out[real] = new[..., 0]
    return out


def _convolve(
    new: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``new`` ``[…, channels, tokens]`` behind ``before`` ``[…, channels, taps - 1]``; also gives what is
    before the next tokens."""
    inputs = torch.cat((before.to(new.dtype), new), dim=-1)
    taps, tokens = weight.shape[1], new.shape[-1]
    out = sum(weight[:, i, None] * inputs[..., i : i + tokens] for i in range(taps))
    out = out if bias is None else out + bias[:, None]
    return silu(out), inputs[..., tokens:].to(before.dtype)


def _without_padding(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows have a slot, and theirs."""
    real = (slots >= 0).nonzero()[:, 0]
    return real, slots[real].long()


def gates(
    log_rate: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a token does to the state of each head.

    Args:
        log_rate: ``[heads]``; ``bias`` likewise.
        a: ``[tokens, heads]``; ``b`` likewise.

    Returns:
        Logarithm of the part that the state keeps, and the part of the new value that is written, each
        ``[1, tokens, heads]`` float32.
    """
    decay = -log_rate.float().exp() * softplus(a.float() + bias.float())
    return decay[None], b.float().sigmoid()[None]


def attend_prompts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None, None]:
    """The gated delta rule for prompts, each from its state on.

    Args:
        q: ``[1, tokens, heads, key_dim]``; ``k`` likewise.
        v: ``[1, tokens, value_heads, value_dim]``.
        g, beta: of :func:`gates`, for ``value_heads``.
        initial_state: ``[slots, value_heads, value_dim, key_dim]``; changed in place.
        initial_state_indices: ``[requests]``, their slots.
        cu_seqlens: ``[requests + 1]``, where each prompt begins.

    Returns:
        ``[1, tokens, value_heads, value_dim]``, and nothing for states in between, which SGLang asks for
        on a GPU only.
    """
    q, k = (_of_value_heads(x[0], v.shape[2]) for x in (q, k))
    inputs = q * q.shape[-1] ** -0.5, k, v[0].float(), g[0], beta[0]
    out = torch.empty_like(v)
    starts = cu_seqlens.tolist()
    for i, slot in enumerate(initial_state_indices.tolist()):
        state = initial_state[slot].float()
        for start in range(starts[i], starts[i + 1], CHUNK):
            rows = slice(start, min(start + CHUNK, starts[i + 1]))
            out[0, rows], state = _chunk(state, *(x[rows].transpose(0, 1) for x in inputs))
        initial_state[slot] = state
    return out, None, None


def _chunk(
    state: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`_step` does, for some tokens at once: what each writes to the state depends on what
    those before it wrote, which is a triangular system of equations.

    Args:
        state: ``[heads, value_dim, key_dim]`` float32, as the other tensors.
        query: ``[heads, tokens, key_dim]``; ``key``, ``value`` likewise.
        decay: ``[heads, tokens]``, logarithms; ``beta`` likewise.

    Returns:
        ``[tokens, heads, value_dim]``, and the state after the last token.
    """
    kept = decay.cumsum(-1)[..., None]  # of the state, since before the chunk
    since = (kept - kept.mT).tril().exp().tril()  # by token i, of what token j wrote
    overlap = beta[..., None] * (key @ key.mT * since).tril(-1)
    missing = beta[..., None] * (value - kept.exp() * (key @ state.mT))
    written = torch.linalg.solve_triangular(overlap, missing, upper=False, unitriangular=True)
    out = kept.exp() * (query @ state.mT) + (query @ key.mT * since) @ written
    last = kept[:, -1:]
    state = last.exp() * state + written.mT @ (key * (last - kept).exp())
    return out.transpose(0, 1), state


def attend_decode(
    *,
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor,
    out: torch.Tensor,
    ssm_state_indices: torch.Tensor,
    use_qk_l2norm_in_kernel: bool,
) -> None:
    """The same for one new token of each request, from what the convolution gave.

    Args:
        mixed_qkv: ``[requests, 2 * heads * key_dim + value_heads * value_dim]``.
        out: ``[requests, 1, value_heads, value_dim]``; written.
    """
    _, value_heads, value_dim, key_dim = initial_state.shape
    values = value_heads * value_dim
    keys = (mixed_qkv.shape[1] - values) // 2
    real, slots = _without_padding(ssm_state_indices)
    q, k, v = mixed_qkv[real].split((keys, keys, values), dim=-1)
    q, k = (_of_value_heads(x.reshape(len(real), -1, key_dim), value_heads) for x in (q, k))
    v = v.reshape(len(real), value_heads, value_dim).float()
    (g,), (beta,) = gates(A_log, a[real], b[real], dt_bias)
    state = initial_state[slots].float()
    out.zero_()
    out[real, 0] = _step(state, q * scale, k, v, g.exp(), beta).to(out.dtype)
    initial_state[slots] = state.to(initial_state.dtype)


def _step(
    state: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor,
    beta: torch.Tensor,
) -> torch.Tensor:
    """One token: let ``state`` ``[…, heads, value_dim, key_dim]`` forget, correct what it holds for
    ``key`` towards ``value``, and read it with ``query``. All float32.

    Returns:
        ``[…, heads, value_dim]``.
    """
    state *= keep[..., None, None]
    held = (state @ key[..., None])[..., 0]
    correction = (value - held) * beta[..., None]
    state += correction[..., None] * key[..., None, :]
    return (state @ query[..., None])[..., 0]


def _of_value_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries or keys ``[tokens, fewer heads, key_dim]`` of length one, for each of the value heads that
    share them: ``[tokens, heads, key_dim]`` float32."""
    x = x.float()
    x = x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def rms_norm_gated(
    x: torch.Tensor,
    g: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    *,
    eps: float,
    **_: Any,
) -> torch.Tensor:
    """RMSNorm of ``x`` ``[rows, width]``, times ``weight`` ``[width]`` and the activated gate ``g``."""
    assert bias is None and activation in ("silu", "swish")
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    return (wide * silu(g.float())).to(x.dtype)


def rms_norm_then_gate(
    *,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    z: torch.Tensor,
    eps: float,
    group_size: int | None,
    norm_before_gate: bool,
    is_rms_norm: bool,
    activation: str,
) -> torch.Tensor:
    """The same by the name and the arguments that Qwen3.5 has for it; ``z`` is the gate."""
    assert group_size is None and norm_before_gate and is_rms_norm
    return rms_norm_gated(x, z, weight, bias, activation, eps=eps)
