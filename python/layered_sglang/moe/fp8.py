"""Block-scaled fp8 (e4m3): groups of 128 of a row for activations, 128 x 128 blocks for weights."""

from __future__ import annotations

import torch

BLOCK = 128
LARGEST = 448.0  # of float8_e4m3fn
SMALLEST_GROUP = 1e-10  # a group of smaller values counts as this


def quantise_groups(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float [..., n] -> float8_e4m3fn [..., n] and float32 scales [..., n / 128].

    As SGLang's per-token group quantisation: a group's scale is its largest magnitude / 448, and
    value * scale is what an element stands for.
    """
    groups = values.float().unflatten(-1, (-1, BLOCK))
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_GROUP)
    return _to_e4m3(groups, largest).flatten(-2), (largest * (1.0 / LARGEST)).squeeze(-1)


def dequantise_groups(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 [..., n] that `quantise_groups` results stand for."""
    return values.float() * scales.repeat_interleave(BLOCK, dim=-1)


def quantise_blocks(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float [..., rows, columns] -> float8_e4m3fn and float32 [..., rows / 128, columns / 128]."""
    blocks = weights.float().unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    largest = blocks.abs().amax(dim=(-3, -1), keepdim=True).clamp(min=SMALLEST_GROUP)
    return _to_e4m3(blocks, largest).reshape(weights.shape), (largest / LARGEST).squeeze(
        -1
    ).squeeze(-2)


def dequantise_blocks(weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 [..., rows, columns] that fp8 weights and their scales stand for."""
    rows = scales.repeat_interleave(BLOCK, dim=-2)
    return weights.float() * rows.repeat_interleave(BLOCK, dim=-1)


def _to_e4m3(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    # NOTE: a number divided by a tensor would be its reciprocal times the number, which can differ
    # in the last bit, and so round a value in the middle of two to the other one.
    inverse = torch.full_like(largest, LARGEST) / largest
    return (values * inverse).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
