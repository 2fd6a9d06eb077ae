"""Which numbers of rows are tried before anybody waits for their kernels."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

kernel_loading = pytest.importorskip("layered_sglang.executor.kernel_loading")
cohort_state = pytest.importorskip("layered_sglang.executor.cohort_state")


class Recorder:
    """A model of ``num_layers`` layers that notes what it ran."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.ran: list[tuple[tuple[int, int], int]] = []

    def run(self, layers, rows, carried, attention):
        assert (carried is None) == (layers.start == 0)
        self.ran.append((tuple(layers), rows.input_ids.shape[0]))
        q = torch.ones(rows.input_ids.shape[0], 6)
        layer = SimpleNamespace(tp_q_head_num=2, v_head_dim=3)
        assert attention.forward(q, q, q, layer, rows).abs().sum() == 0
        assert rows.out_cache_loc.sum() == 0, "slot 0 is nobody's"
        assert sum(rows.extend_prefix_lens_cpu) == 0, "latent attention asks"
        return cohort_state.CarriedRows(q, q) if layers.end < self.num_layers else q


def load(model: Recorder, most: int) -> int:
    pools = SimpleNamespace(token_to_kv_pool=None, req_to_token_pool=None)
    return kernel_loading.load_kernels(model, pools, most, "cpu")


def test_the_first_and_the_last_layer_run_with_many_numbers_of_rows():
    model = Recorder(48)
    tried = load(model, 8256)
    counts = [rows for layers, rows in model.ran if layers == (0, 1)]
    assert [rows for layers, rows in model.ran if layers == (47, 48)] == counts
    assert len(counts) == tried and len(model.ran) == 2 * tried
    assert counts[0] == 8256, "the most first: the others fit into its memory"
    assert all(0 < a - b < 64 for a, b in itertools.pairwise(counts))
    assert {rows % 8 for rows in counts} == set(range(8)), "multiples of nothing, too"


def test_a_model_of_one_layer_is_left_out():
    model = Recorder(1)
    assert load(model, 1000) == 0 and not model.ran


def test_linear_attention_gets_zeros_of_its_own_shape():
    linear = pytest.importorskip("sglang.srt.layers.radix_linear_attention").RadixLinearAttention
    nothing = kernel_loading.NoAttention(
        SimpleNamespace(token_to_kv_pool=None, req_to_token_pool=None)
    )
    layer = linear(0, 2, 2, 4, 8, 8, 16)
    out = nothing.forward(layer=layer, forward_batch=None, mixed_qkv=torch.ones(5, 96), a=1, b=2)
    assert out.shape == (1, 5, 4, 16) and not out.any()
