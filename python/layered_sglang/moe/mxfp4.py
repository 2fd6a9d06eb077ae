"""MXFP4 weights: e2m1 values (fp4), two a byte, and an e8m0 scale (2^k) for each 32 of a row.

Three forms: float32; the checkpoint's (uint8 [..., rows, columns / 2], the even column in the low
four bits, and uint8 scales [..., rows, columns / 32]: exponents + 127); and the kernels' own layout
(src/experts/mxfp4_layout.h), into which `pack` brings the checkpoint's once.
"""

from __future__ import annotations

import torch

GROUP = 32  # of a row that share a scale
BLOCK = 64  # rows and columns of a block of the kernels' layout
BLOCK_BYTES = BLOCK * BLOCK // 2 + BLOCK * BLOCK // GROUP
LARGEST_SCALE = 128  # as a byte: the kernels multiply with 2^(byte - 1) in bfloat16
SCALE_OFFSET = 126
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def quantise(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float [..., rows, columns] -> the checkpoint's form; columns a multiple of 32.

    As the OCP microscaling specification: a group's scale is the power of two with which its
    largest magnitude is below 8, and what is then above 6 becomes 6.
    """
    groups = weights.float().unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(dim=-1, keepdim=True)
    exponents = torch.where(largest > 0, largest.frexp().exponent - 3, -127).clamp(-127, 1)
    scaled = groups * (-exponents).float().exp2()
    bounds = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], device=weights.device)
    bits = torch.bucketize(scaled.abs(), bounds) + 8 * (scaled < 0)
    bits = bits.flatten(-2).to(torch.uint8)
    return bits[..., ::2] | bits[..., 1::2] << 4, (exponents + 127).squeeze(-1).to(torch.uint8)


def dequantise(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 [..., rows, columns] that the checkpoint's form stands for."""
    table = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)], device=values.device)
    bits = _unpacked(values).long()
    factors = (scales.float() - 127).exp2().repeat_interleave(GROUP, dim=-1)
    return table[bits] * factors


def pack(values: torch.Tensor, scales: torch.Tensor, *, gate_up: bool) -> torch.Tensor:
    """The checkpoint's form of all experts -> uint8 [experts, row blocks, column blocks, 2176].

    Args:
        values: uint8 [experts, rows, columns / 2].
        scales: uint8 [experts, rows, columns / 32], none above 128 (a scale of 2).
        gate_up: the rows are alternately a neuron's gate and up row, as gpt-oss has them.

    Raises:
        ValueError: a scale is above 2, or the shapes do not belong together.

    One expert at a time: besides the result, only one expert's values are unpacked in memory.
    """
    experts, rows, half_columns = values.shape
    if scales.shape != (experts, rows, half_columns * 2 // GROUP):
        raise ValueError(f"scales: expected {[experts, rows, half_columns * 2 // GROUP]}, "
                         f"got {list(scales.shape)}")  # fmt: skip
    if experts and int(scales.max()) > LARGEST_SCALE:
        raise ValueError(f"scales: expected at most {LARGEST_SCALE} (2^1), got {int(scales.max())}")
    row_blocks, column_blocks = -(-rows // BLOCK), -(-half_columns * 2 // BLOCK)
    packed = values.new_empty(experts, row_blocks, column_blocks, BLOCK_BYTES)
    for expert in range(experts):
        blocks = _value_blocks(values[expert], row_blocks, column_blocks, gate_up)
        packed[expert, :, :, : blocks.shape[-1]] = blocks
        packed[expert, :, :, blocks.shape[-1] :] = _scale_blocks(
            scales[expert], row_blocks, column_blocks, gate_up
        )
    return packed


def unpack(
    packed: torch.Tensor, rows: int, columns: int, *, gate_up: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pack` undone: values and scales of [experts, rows, columns] in the checkpoint's form."""
    value_bytes = BLOCK * BLOCK // 2
    words = packed[..., :value_bytes].contiguous().view(torch.int16).int() & 0xFFFF
    # [.., warp, row, pair of columns, word, column of the pair]
    words = words.unflatten(-1, (4, 8, 4, 4, 2))
    first = (
        words << (3 * torch.arange(3, device=words.device)).view(3, *[1] * words.dim())
    ) & 0x81C0
    fourth = (words << 4 & 0x8000) | (words >> 2 & 0x0100) | (words >> 7 & 0x00C0)
    fourth = fourth.flip(-1)  # its two columns are exchanged
    halves = torch.cat([first, fourth[None]]).unflatten(0, (2, 2))  # [column + 8, half]
    bits = (halves >> 12 & 8) | (halves >> 6 & 7)
    bits = bits.permute(2, 3, 5, 6, 1, 4, 8, 0, 7, 9)
    bits = _rows_in_order(bits.flatten(5).to(torch.uint8), gate_up)[:, :rows, :columns]
    fields = packed[..., value_bytes:].contiguous().view(torch.int16).int() & 0xFFFF
    fields = fields.unflatten(-1, (4, 8, 2))  # warp, row, half
    second = (fields & 0x7F) << 1 | fields.flip(-1) >> 15
    scales = torch.stack([fields >> 7 & 0xFF, second], dim=-1).to(torch.uint8)
    scales = scales.permute(0, 1, 3, 4, 5, 2, 6)
    scales = _rows_in_order(scales.flatten(5), gate_up)[:, :rows, : columns // GROUP]
    return bits[..., ::2] | bits[..., 1::2] << 4, scales - SCALE_OFFSET


def _unpacked(values: torch.Tensor) -> torch.Tensor:
    return torch.stack([values & 15, values >> 4], dim=-1).flatten(-2)


def _by_warp(rows: torch.Tensor, row_blocks: int, gate_up: bool) -> torch.Tensor:
    """[rows, n] -> [row blocks, 4 warps, 8, 2 halves, n]: see mxfp4_row in the layout's header."""
    rows = torch.nn.functional.pad(rows, (0, 0, 0, row_blocks * BLOCK - len(rows)))
    if gate_up:
        return rows.view(row_blocks, 4, 8, 2, -1)
    return rows.view(row_blocks, 4, 2, 8, -1).transpose(2, 3)


def _rows_in_order(by_warp: torch.Tensor, gate_up: bool) -> torch.Tensor:
    """[experts, row blocks, 4, 8, 2, n] -> [experts, rows, n]."""
    return (by_warp if gate_up else by_warp.transpose(3, 4)).flatten(1, 4)


def _value_blocks(
    values: torch.Tensor, row_blocks: int, column_blocks: int, gate_up: bool
) -> torch.Tensor:
    """uint8 [rows, columns / 2] of one expert -> [row blocks, column blocks, 2048]."""
    padding = (0, column_blocks * BLOCK // 2 - values.shape[1])
    bits = _unpacked(torch.nn.functional.pad(values, padding)).short()
    # columns: blocks, 16 of K (a word), 8 of those (a register), pairs (a lane), the two of a pair
    bits = _by_warp(bits, row_blocks, gate_up).unflatten(-1, (column_blocks, 4, 2, 4, 2))
    bits = bits.permute(6, 3, 0, 4, 1, 2, 7, 5, 8).flatten(0, 1)  # [pair of the word, ...]
    sign, magnitude = bits >> 3, bits & 7
    halves = (
        (sign[0] << 15 | magnitude[0] << 6)
        | (sign[1] << 12 | magnitude[1] << 3)
        | (sign[2] << 9 | magnitude[2])
        | (sign[3] << 11 | (magnitude[3] >> 2) << 10 | (magnitude[3] & 3) << 13).flip(-1)
    )
    return halves.contiguous().view(torch.uint8).flatten(2)


def _scale_blocks(
    scales: torch.Tensor, row_blocks: int, column_blocks: int, gate_up: bool
) -> torch.Tensor:
    """uint8 [rows, columns / 32] of one expert -> [row blocks, column blocks, 128]."""
    padding = (0, column_blocks * BLOCK // GROUP - scales.shape[1])
    fields = torch.nn.functional.pad(scales, padding) + SCALE_OFFSET
    fields = _by_warp(fields, row_blocks, gate_up).unflatten(-1, (column_blocks, 2))
    first, second = fields.permute(5, 0, 4, 1, 2, 3).short()
    words = first << 7 | second >> 1 | (second.flip(-1) & 1) << 15
    return words.contiguous().view(torch.uint8).flatten(2)
