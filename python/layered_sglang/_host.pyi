"""Host-side parts of the native code: build facts, sizes, choices (csrc/host_module.cpp)."""

from typing import TypedDict

class BuildFacts(TypedDict):
    version: str
    torch: str
    cuda: bool
    cuda_architectures: str
    nvcc: str
    cxx: str

MAX_EXPERTS: int
MAX_ROW_ALIGNMENT: int
MAX_PAIRS: int
MAX_TILE_TOKENS: int
EXPERT_HIDDEN_MULTIPLE: int
EXPERT_INTER_MULTIPLE: int
MAX_EXPERT_TOP_K: int

def build_facts() -> BuildFacts: ...
def padded_row_capacity(num_pairs: int, num_experts: int, row_alignment: int = 1) -> int: ...
def fused_experts_path(
    num_tokens: int, top_k: int, num_experts: int, hidden: int, inter: int
) -> str: ...
def grouped_gemm_tasks(
    expert_counts: list[int], num_weight_tiles: int, cluster: int = 1
) -> list[tuple[int, int, int, int, int]]: ...
def token_tiles(rows: int, multiple: int = 1) -> tuple[int, int]: ...
