"""Expanded keys of prompts behind a cached prefix: where they are, and who sees which."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

latent_prefix = pytest.importorskip("layered_sglang.platforms.latent_prefix")
torch_attention = pytest.importorskip("layered_sglang.platforms.torch_attention")
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context  # noqa: E402


def test_slots_are_looked_up_once_request_by_request():
    table = torch.arange(40).view(4, 10)
    backend = SimpleNamespace(req_to_token_pool=SimpleNamespace(req_to_token=table))
    rows = SimpleNamespace(
        mha_one_shot_kv_indices=None,
        req_pool_indices=torch.tensor([2, 0]),
        seq_lens=torch.tensor([3, 2]),
    )
    with forward_context(ForwardContext(attn_backend=backend)):
        slots = latent_prefix.slots_of_all_keys(rows)
        assert slots.tolist() == [20, 21, 22, 0, 1]
        table.zero_()
        assert latent_prefix.slots_of_all_keys(rows) is slots


@pytest.mark.parametrize("one_shot", [None, True])
def test_each_prompt_sees_its_own_keys_and_with_one_shot_its_prefix(one_shot):
    new, lengths = [3, 2], [7, 2] if one_shot else [3, 2]
    rows = SimpleNamespace(
        extend_seq_lens=torch.tensor(new), seq_lens=torch.tensor([7, 2]), mha_one_shot=one_shot
    )
    layer = SimpleNamespace(
        tp_q_head_num=2, tp_k_head_num=2, qk_head_dim=6, v_head_dim=4, scaling=0.3
    )
    q, k = torch.randn(5, 2, 6), torch.randn(sum(lengths), 2, 6)
    v = torch.randn(sum(lengths), 2, 4)
    got = torch_attention.TorchAttention._attend_to_given(None, q, k, v, layer, rows)
    border = lengths[0]
    first = torch_attention.attend(q[:3], k[:border], v[:border], 0.3)
    second = torch_attention.attend(q[3:], k[border:], v[border:], 0.3)
    torch.testing.assert_close(got.view(5, 2, 4), torch.cat((first, second)))
