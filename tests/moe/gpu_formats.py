"""The formats whose experts have kernels on a GPU, for the tests that all of them pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from fp8_cases import assert_fp8_close, integer_fp8_layer, random_fp8_layer
from fused_experts_cases import Shape, assert_close, integer_layer, random_layer
from guarded import Guarded
from layered_sglang import moe
from layered_sglang.moe.reference import fused_experts_fp8_reference, fused_experts_reference
from layered_sglang.moe.reference_mxfp4 import fused_experts_mxfp4_reference
from mxfp4_cases import assert_mxfp4_close, integer_mxfp4_layer, random_mxfp4_layer

QWEN = Shape(128, 8, 2048, 768)
GPT_OSS = Shape(32, 4, 2880, 2880)
SMALL = Shape(16, 4, 512, 256)


class Format(NamedTuple):
    operator: str
    """Its name, and with _out and _workspace_bytes those of the others."""
    paths: tuple[str, ...]
    gemms: tuple[str, ...]
    """Of the paths, those with a plan, for many tokens."""
    activation: str
    random_layer: Callable[..., Any]
    """(shape, topk_ids, device, seed) -> the operator's tensors, as those below."""
    integer_layer: Callable[..., Any]
    reference: Callable[..., torch.Tensor]
    """(*tensors, activation): equal to the last bit on the integer layers with "bilinear"."""
    assert_close: Callable[..., None]
    shapes: tuple[Shape, ...]
    prefill: Shape
    repeated: Shape
    """Of the tests that compare results bit for bit."""
    exact: Shape
    """One expert a token: every step on its integer layers is exact."""
    widths: range
    counts: list[int]
    """Rows of 16 experts about where token tiles begin, end and become finer."""

    def __str__(self) -> str:
        return self.operator.removeprefix("fused_experts").strip("_") or "bf16"

    def call(self, *tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        return getattr(moe, self.operator)(*tensors, **options)

    def call_out(self, *arguments: Any) -> None:
        getattr(torch.ops.layered_sglang, f"{self.operator}_out")(*arguments)

    def workspace_bytes(self, tokens: int, shape: Shape) -> int:
        sizes = (tokens, shape.top_k, shape.num_experts, shape.hidden, shape.inter)
        return getattr(moe, f"{self.operator}_workspace_bytes")(*sizes)

    def guarded_result(
        self, shape: Shape, layer: Any, path: str, activation: str = ""
    ) -> torch.Tensor:
        """Its _out operator's result, with every buffer poisoned and guarded, the inputs, too."""
        inputs = []
        for tensor in layer:
            guarded = Guarded(tuple(tensor.shape), tensor.dtype)
            guarded.buffer.copy_(tensor)
            inputs.append(guarded)
        out = Guarded(tuple(layer.x.shape), torch.bfloat16)
        workspace = Guarded((self.workspace_bytes(len(layer.x), shape),), torch.uint8)
        buffers = [guarded.buffer for guarded in (*inputs, out, workspace)]
        self.call_out(*buffers, activation or self.activation, path)
        assert all(guarded.guards_are_intact() for guarded in (*inputs, out, workspace))
        for guarded, tensor in zip(inputs, layer, strict=True):
            assert torch.equal(guarded.buffer.view(torch.uint8), tensor.view(torch.uint8))
        return out.buffer


BF16 = Format(
    operator="fused_experts",
    paths=("gemv", "gemm", "gemm_pairs"),
    gemms=("gemm", "gemm_pairs"),
    activation="silu",
    random_layer=random_layer,
    integer_layer=integer_layer,
    reference=fused_experts_reference,
    assert_close=assert_close,
    shapes=(
        QWEN,
        *(QWEN._replace(inter=inter) for inter in (384, 192, 96)),  # tensor-parallel shards
        GPT_OSS,  # K and both outputs end within a tile
        Shape(8, 2, 4096, 1792),  # Mixtral, an eighth
        Shape(4, 2, 520, 328),  # inter a multiple of 8 only: gate's tail must not reach into up
        Shape(5, 3, 72, 48),  # less than one tile, and one block of K, everywhere
        Shape(512, 4, 512, 64),  # so many experts that their table takes a stage of the ring
    ),
    prefill=QWEN,
    repeated=QWEN,
    exact=Shape(3, 1, 256, 128),
    widths=range(8, 193, 8),
    counts=[15, 16, 17, 63, 64, 65, 72, 73, 191, 192, 193, 383, 384, 385, 0, 1],
)
FP8 = Format(
    operator="fused_experts_fp8",
    paths=("narrow", "wide"),
    gemms=("narrow", "wide"),
    activation="silu",
    random_layer=random_fp8_layer,
    integer_layer=integer_fp8_layer,
    reference=fused_experts_fp8_reference,
    assert_close=assert_fp8_close,
    shapes=(
        QWEN,
        *(QWEN._replace(inter=inter) for inter in (384, 128)),  # the shards that blocks allow
        Shape(16, 8, 7168, 2048),  # DeepSeek-V3, fewer experts
        Shape(8, 2, 4096, 1792),  # Mixtral, an eighth
        Shape(5, 3, 384, 256),  # w2's last tile has one block of rows
        Shape(5, 3, 128, 128),  # one block of K, less than one tile of w2
    ),
    prefill=QWEN,
    repeated=QWEN,
    exact=Shape(3, 1, 256, 384),
    widths=range(8, 129, 8),
    counts=[15, 16, 17, 64, 65, 72, 73, 119, 120, 121, 128, 129, 192, 193, 0, 1],
)
MXFP4 = Format(
    operator="fused_experts_mxfp4",
    paths=("gemv", "stream", "few", "many"),
    gemms=("stream", "few", "many"),
    activation="swiglu",
    random_layer=random_mxfp4_layer,
    integer_layer=integer_mxfp4_layer,
    reference=fused_experts_mxfp4_reference,
    assert_close=assert_mxfp4_close,
    shapes=(
        GPT_OSS,
        *(GPT_OSS._replace(inter=inter) for inter in (1472, 736)),  # shards of 2 and 4, as padded
        Shape(5, 3, 96, 160),  # rows and K end within a block
        Shape(5, 3, 32, 32),  # half a block of each
    ),
    prefill=GPT_OSS,
    repeated=SMALL._replace(hidden=960, inter=480),
    exact=Shape(3, 1, 288, 352),
    widths=range(16, 193, 16),
    counts=[8, 9, 15, 16, 17, 63, 64, 65, 128, 143, 144, 145, 289, 1, 0, 2],
)
FORMATS = (BF16, FP8, MXFP4)
