"""Host-side parts of the native code: build facts and plan sizes (csrc/host_module.cpp)."""

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

def build_facts() -> BuildFacts: ...
def padded_row_capacity(num_pairs: int, num_experts: int, row_alignment: int = 1) -> int: ...
