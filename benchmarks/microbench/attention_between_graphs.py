"""Host time of what stands between the graphs of a merged layer, attention itself left out.

Runs on a CPU: narrow tensors and attention backends that compute nothing, so what is left is Python,
views and copies. On a GPU each copy is a kernel launch, which costs the host more than here.

  python benchmarks/microbench/attention_between_graphs.py
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import torch
from layered_sglang.executor.mixed_attention import MixedAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

LAYERS, ITERATIONS, WIDTH = 48, 200, 8
LAYER = SimpleNamespace(tp_q_head_num=2, v_head_dim=WIDTH // 2)


class Nothing:
    """Attention that has its answer ready, where the batch wants it if it says so."""

    token_to_kv_pool = req_to_token_pool = None

    def __init__(self) -> None:
        self.ready = torch.zeros(4096, WIDTH)

    def forward(self, q, k, v, layer, rows, save_kv_cache, **kwargs):
        out = rows._attn_output
        return self.ready[: q.shape[0]] if out is None else out


def batch(tokens: int) -> ForwardBatch:
    ids = torch.zeros(tokens, dtype=torch.int64)
    fields = dict.fromkeys(("input_ids", "out_cache_loc", "req_pool_indices", "seq_lens"), ids)
    return ForwardBatch(
        forward_mode=ForwardMode.EXTEND, batch_size=1, seq_lens_sum=tokens, positions=ids, **fields
    )


def main() -> None:
    torch.set_num_threads(1)
    attention = MixedAttention(Nothing(), Nothing())
    calls: list[tuple] = []
    attention._attend_between_graphs = lambda *call: calls.append(call)  # type: ignore[assignment]
    qkv = [torch.zeros(64, WIDTH) for _ in range(3)]
    with attention.capturing():
        for _ in range(LAYERS):
            attention.forward(*qkv, LAYER, None)  # type: ignore[arg-type]
    cohort, decode = batch(50), batch(8)
    seconds = []
    for _ in range(ITERATIONS):
        start = time.perf_counter()
        attention.set_rows(cohort, decode)
        for call in calls:
            attention._attend(*call)
        attention.set_rows(None, None)
        seconds.append((time.perf_counter() - start) / LAYERS)
    seconds.sort()
    least, median = seconds[0] * 1e6, seconds[len(seconds) // 2] * 1e6
    print(f"{median:.1f} us a layer (least {least:.1f}), {LAYERS} layers, {ITERATIONS} iterations")


if __name__ == "__main__":
    main()
