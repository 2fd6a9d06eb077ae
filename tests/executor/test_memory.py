"""What is taken from the KV cache's share: by the model's sizes and the flags."""

from __future__ import annotations

import pytest
import torch
from layered_sglang.executor.memory import GIB, GRAPH_BYTES, RowSizes, memory_needs, size
from layered_sglang.model_zoo import find_preset
from layered_sglang.moe import fused_experts_workspace_bytes, native_status

QWEN = RowSizes.from_config(find_preset("qwen3-30b-a3b").config, 2)


def test_sizes_of_published_models() -> None:
    assert RowSizes(2048, 4096, 1024, 768, 8, 128, 2) == QWEN
    shard = RowSizes.from_config(find_preset("qwen3-30b-a3b").config, 2, tp_size=8)
    assert shard == RowSizes(2048, 512, 256, 96, 8, 128, 2)  # 4 key heads become 8: one a rank
    mixtral = RowSizes.from_config(find_preset("mixtral-8x7b").config, 2)
    assert mixtral == RowSizes(4096, 4096, 2048, 14336, 2, 8, 2)
    dense = RowSizes.from_config(find_preset("qwen3-8b").config, 2)
    assert (dense.experts, dense.top_k, dense.inter) == (0, 1, 12288)
    gpt_oss = RowSizes.from_config(find_preset("gpt-oss-20b").config, 2)
    assert gpt_oss == RowSizes(2880, 4096, 1024, 2880, 4, 32, 2)


def test_queries_of_latent_attention_are_as_wide_as_what_the_cache_holds() -> None:
    config = find_preset("tiny-deepseek-v3").config  # 64 + 64 numbers a token, 4 heads
    assert RowSizes.from_config(config, 4) == RowSizes(64, 512, 256, 64, 4, 16, 4)
    assert RowSizes.from_config(config, 4, tp_size=2) == RowSizes(64, 256, 256, 32, 4, 16, 4)


@pytest.mark.parametrize("rows", [1, 64, 513, 8192, 16384])
@pytest.mark.parametrize(
    "sizes", [QWEN, RowSizes(4096, 0, 0, 14336, 2, 8, 2), RowSizes(7168, 0, 0, 256, 8, 256, 2)]
)  # fmt: skip
def test_the_experts_workspace_fits(rows: int, sizes: RowSizes) -> None:
    if not native_status().cuda:
        pytest.skip("the compiled library has no CUDA kernels to ask")
    needed = fused_experts_workspace_bytes(
        rows, sizes.top_k, sizes.experts, sizes.hidden, sizes.inter
    )
    assert needed <= sizes.experts_bytes(rows)
    assert sizes.experts_bytes(rows) <= 2.5 * needed + 2**17, "no more than SGLang's buffers take"


def test_layers_of_torch_operators_fit() -> None:
    """The activations of one layer, none freed: what a layer of these operators allocates."""
    rows, q, kv = 16, QWEN.query, QWEN.key_value
    widths = {
        "joined": 2048,
        "residual": 2048,
        "normed": 2048,
        "qkv": q + kv,
        "rotated": q + kv // 2,
    }
    widths |= {"attended": q, "copied": q, "projected": 2048, "expert input": 2048, "output": 2048}
    tensors = [torch.empty(rows, width, dtype=torch.bfloat16) for width in widths.values()]
    tensors += [torch.empty(rows, 128) for _ in range(2)]
    assert sum(t.nbytes for t in tensors) <= QWEN.layer_bytes(rows)


def test_carried_states_are_hidden_and_residual_of_two_cohorts() -> None:
    needs = memory_needs(QWEN, cohort_tokens=8192, decode_rows=256)
    assert needs.carried == 2 * 2 * 8192 * 2048 * 2
    assert needs.graphs == 0


def test_what_is_taken_depends_on_when_sglang_measures() -> None:
    needs = memory_needs(QWEN, 8192, 256, graph_sizes=(64, 4096), graphs=1000)
    assert needs.graphs > 1000 * GRAPH_BYTES + QWEN.experts_bytes(4096)
    assert needs.reserve(measured_after_capture=True) == needs.carried + needs.layer + needs.experts
    assert needs.reserve(measured_after_capture=False) == needs.carried + needs.graphs
    assert needs.experts > QWEN.experts_bytes(8192 + 256)
    # An eighth of the published reserve of 1.5 MB a token at most, or the cache would shrink for nothing.
    assert needs.reserve(True) < 8192 * 1.5 * 2**20 / 8
    text = needs.describe(True)
    assert "carried states 0.1 GiB, a layer group" in text and "graphs" not in text
    assert "layer graphs (estimated)" in needs.describe(False)


def test_a_partitioned_gpu_needs_what_was_measured_and_a_layer_groups_activations_twice() -> None:
    """Measured on an H100: 3.1 GiB were taken while capturing, 1.3 without partitions."""
    sizes, batches = (64, 4096), 15
    graphs = 48 * (batches + 2 * 24)
    plain = memory_needs(QWEN, 8192, 64, sizes, graphs)
    parts = memory_needs(QWEN, 8192, 64, sizes, graphs, whole_step_layers=48 * batches)
    assert 1.8 * GIB < parts.graphs - plain.graphs < 2.2 * GIB
    assert parts.lane == plain.layer + plain.experts and plain.lane == 0
    for after_capture in (True, False):
        more = parts.reserve(after_capture) - plain.reserve(after_capture)
        assert more == parts.lane + (0 if after_capture else parts.graphs - plain.graphs)
        assert "own multiprocessors" in parts.describe(after_capture)
        assert "own multiprocessors" not in plain.describe(after_capture)


def test_sizes_for_people() -> None:
    assert (size(GIB), size(3 * 2**20)) == ("1.0 GiB", "3.0 MiB")
