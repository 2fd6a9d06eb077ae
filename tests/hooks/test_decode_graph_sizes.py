"""Closer decode graph sizes: for models with experts, where nobody asked for others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from layered_sglang.hooks.server_args import _take_fine_graph_sizes
from layered_sglang.scheduling.graph_sizes import fine_sizes, stock_sizes

MOE, DENSE = {"num_experts": 128}, {}


def sizes(bs: list[int], config: dict = MOE, device: str = "cuda") -> list[int]:
    decode = SimpleNamespace(bs=bs, max_bs=64)
    text = SimpleNamespace(to_dict=lambda: config)
    args = SimpleNamespace(
        cuda_graph_config=SimpleNamespace(decode=decode),
        device=device,
        get_model_config=lambda: SimpleNamespace(hf_text_config=text),
    )
    _take_fine_graph_sizes(args)
    return decode.bs


def test_experts_get_closer_sizes() -> None:
    assert sizes(stock_sizes(64)) == fine_sizes(64)


@pytest.mark.parametrize("asked", [[1, 8, 64], list(range(1, 65))], ids=["sizes", "no padding"])
def test_what_was_asked_for_stays(asked) -> None:
    assert sizes(list(asked)) == asked


def test_dense_models_and_cpus_keep_sglangs() -> None:
    assert sizes(stock_sizes(64), DENSE) == stock_sizes(64)
    assert sizes(stock_sizes(64), device="cpu") == stock_sizes(64)
