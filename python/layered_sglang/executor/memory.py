"""What layered prefill needs of a GPU's memory beside the weights and the KV cache.

SGLang gives the KV cache what is left after a reserve: for the activations of a prefill and the graphs
that it plans to capture, or, where it sizes the cache again after capture, for next to nothing beyond
what the graphs hold. Neither knows of the graphs and rows here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layered_sglang.scheduling.model_shape import experts_per_token, num_experts

GIB = 2**30
#: Cohorts whose rows may be kept at once: one of short prompts overtakes another.
COHORTS = 2
#: Device memory of one captured graph of a layer or of a part of one, kernels' parameters and the
#: driver's own. 1.3 GiB for 2304 of them and their rows, on an H200, Qwen3-30B-A3B.
GRAPH_BYTES = GIB // 2048
#: A layer of a graph of a whole decode step: SGLang's own 27 took 0.16 GiB there.
WHOLE_STEP_LAYER_BYTES = GIB // 8192
#: A GPU in two parts (``--layered-execution overlapped``): two green contexts, their streams' library
#: workspaces, and every kernel once more for those streams. What capture took beyond layer graphs was 1.8
#: GiB on an H100 with Qwen3-30B-A3B, decode's graphs among it; that is all that is known of it.
PARTITION_BYTES = 7 * GIB // 4
#: A caching allocator rounds up and leaves gaps.
ALLOCATOR = 1.25


@dataclass(frozen=True)
class RowSizes:
    """Widths of a layer's activations on one tensor-parallel rank, in numbers (not bytes) a row.

    Attributes:
        hidden: the hidden size.
        query, key_value: all query heads; keys and values of all their heads together. Where linear
            attention is wider: the gate of its output, and its queries, keys and values.
        inter: intermediate size of an expert, or of the MLP of a dense layer.
        top_k: experts a row visits; 1 in a dense model.
        experts: routed experts; 0 in a dense model.
        dtype_bytes: of one number.
    """

    hidden: int
    query: int
    key_value: int
    inter: int
    top_k: int
    experts: int
    dtype_bytes: int

    @staticmethod
    def from_config(config: Mapping[str, Any], dtype_bytes: int, tp_size: int = 1) -> RowSizes:
        """Of a Hugging Face ``config.json``: Qwen, Mixtral, GLM, gpt-oss, DeepSeek, Llama."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        kv_heads = max(config.get("num_key_value_heads") or heads, tp_size)
        if config.get("kv_lora_rank"):
            # Queries are as wide as the cache's narrow vectors, which all of them share.
            head_dim, kv_heads = config["kv_lora_rank"] + config["qk_rope_head_dim"], tp_size
        query, key_value = -(-heads // tp_size) * head_dim, -(-2 * kv_heads // tp_size) * head_dim
        if config.get("linear_num_value_heads"):
            values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
            keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
            query = max(query, -(-values // tp_size))
            key_value = max(key_value, -(-(2 * keys + values) // tp_size))
        experts = num_experts(config)
        inter = config.get("intermediate_size") or 0
        if experts:
            inter = config.get("moe_intermediate_size") or inter
        return RowSizes(
            hidden=hidden,
            query=query,
            key_value=key_value,
            inter=-(-inter // tp_size),
            top_k=experts_per_token(config) if experts else 1,
            experts=experts,
            dtype_bytes=dtype_bytes,
        )

    def carried_bytes(self, rows: int) -> int:
        """Hidden states and residuals between two layers."""
        return 2 * rows * self.hidden * self.dtype_bytes

    def experts_bytes(self, rows: int) -> int:
        """What computes the experts holds while it runs: the intermediate of every (row, expert) pair
        and its output, which takes gate and up's place; and what sorts the pairs. The fused experts'
        workspace and the buffers of SGLang's Triton kernels both fit."""
        pairs = rows * self.top_k
        sorting = 4 * (4 * pairs + 66 * max(self.experts, 1)) + 7 * 256
        return pairs * (max(2 * self.inter, self.hidden) + self.inter) * self.dtype_bytes + sorting

    def layer_bytes(self, rows: int) -> int:
        """The other activations of a layer run eagerly, as if none were freed before its end: cohort
        and decode rows joined, normed input, projections, attention and its copy, both outputs."""
        widths = 7 * self.hidden + 4 * self.query + 2 * self.key_value
        router = 3 * self.experts * 4  # float32
        return rows * (widths * self.dtype_bytes + router)


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes, on one rank.

    Attributes:
        carried: rows of cohorts between their layer groups.
        layer: an active layer group without graphs, its experts left out.
        experts: what computes the experts of such a layer group.
        graphs: the layer graphs and their rows, estimated before they are captured; also a second set
            of decode's graphs, and the contexts of a GPU in two parts.
        lane: a layer group's activations once more, where cohorts have a stream of their own: an
            allocator keeps a stream's memory for that stream.
    """

    carried: int
    layer: int
    experts: int
    graphs: int
    lane: int = 0

    def reserve(self, measured_after_capture: bool) -> int:
        """What to take from the KV cache's share.

        Args:
            measured_after_capture: SGLang sizes the cache by what is free once graphs are captured, and
                reserves nothing for prefills outside of them. Else its reserve holds the activations of
                a prefill as long as a cohort, but not our graphs.
        """
        if measured_after_capture:
            return self.carried + self.layer + self.experts + self.lane
        return self.carried + self.graphs + self.lane

    def describe(self, measured_after_capture: bool) -> str:
        """One phrase for the start-up banner."""
        parts = {"carried states": self.carried}
        if measured_after_capture:
            parts |= {"a layer group": self.layer, "its experts": self.experts}
        else:
            parts["layer graphs (estimated)"] = self.graphs
        parts["a layer group on its own multiprocessors"] = self.lane
        total = self.reserve(measured_after_capture)
        text = ", ".join(f"{name} {size(number)}" for name, number in parts.items() if number)
        return f"{size(total)} taken from the KV cache's share: {text}"


def memory_needs(
    rows: RowSizes,
    cohort_tokens: int,
    decode_rows: int,
    graph_sizes: tuple[int, ...] = (),
    graphs: int = 0,
    whole_step_layers: int = 0,
    captured: int = 0,
) -> MemoryNeeds:
    """What a server with these limits needs.

    Args:
        rows: the model's widths.
        cohort_tokens: most prompt tokens that advance together.
        decode_rows: most running requests beside them.
        graph_sizes: rows of the merged layer graphs.
        graphs: captured graphs of layers or parts of them, in all.
        whole_step_layers: layers in decode's graphs that are captured once more for a part of the GPU, in
            all; 0: the GPU is not partitioned.
        captured: layers whose input is kept for a draft model.
    """
    longest = cohort_tokens + decode_rows
    in_graphs = 0
    if graphs:
        most = max((*graph_sizes, decode_rows))
        own = rows.carried_bytes(most) + rows.carried_bytes(decode_rows)
        in_graphs = graphs * GRAPH_BYTES + own + rows.layer_bytes(most) + rows.experts_bytes(most)
    layer = round(ALLOCATOR * rows.layer_bytes(longest))
    experts = round(ALLOCATOR * rows.experts_bytes(longest))
    lane = 0
    if whole_step_layers:
        in_graphs += PARTITION_BYTES + whole_step_layers * WHOLE_STEP_LAYER_BYTES
        lane = layer + experts
    # What is captured is half as wide as what is carried, which has a residual.
    carried = COHORTS * (2 + captured) * rows.carried_bytes(cohort_tokens) // 2
    return MemoryNeeds(carried, layer, experts, in_graphs, lane)


def size(number: int) -> str:
    """Bytes for people."""
    if number >= GIB / 10:
        return f"{number / GIB:.1f} GiB"
    return f"{number / 2**20:.1f} MiB"
