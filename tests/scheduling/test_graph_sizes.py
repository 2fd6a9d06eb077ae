"""The batch sizes of decode graphs, against SGLang's own lists."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from layered_sglang.scheduling.graph_sizes import fine_sizes, stock_sizes
from sglang.srt.server_args import ServerArgs

MOST = [1, 5, 8, 24, 64, 160, 256, 300, 512, 768]


def sglang_sizes(most: int, speculative: str | None) -> list[int]:
    asked = SimpleNamespace(disable_cuda_graph_padding=False, speculative_algorithm=speculative)
    return ServerArgs._generate_decode_cuda_graph_batch_sizes(asked, most)


@pytest.mark.parametrize("most", MOST)
def test_stock_sizes_are_sglangs(most):
    assert stock_sizes(most) == sorted(sglang_sizes(most, None))


@pytest.mark.parametrize("most", MOST)
def test_fine_sizes_are_those_of_speculative_decoding(most):
    assert fine_sizes(most) == sorted(sglang_sizes(most, "EAGLE"))
