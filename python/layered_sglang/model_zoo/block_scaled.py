"""A checkpoint in block-scaled fp8, as DeepSeek and Qwen3-…-FP8 publish theirs.

A matrix ``[outputs, inputs]`` is kept as e4m3, and for each block of 128 x 128 of it a float32 scale,
``….weight_scale_inv``. Embeddings, norms, routers and the output matrix stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layered_sglang.model_zoo.tensors import Role, model_tensors
from layered_sglang.model_zoo.weights import random_weights

if TYPE_CHECKING:
    import torch

BLOCK = 128
LARGEST = 448.0  # of e4m3
QUANTISED = {Role.QUERY_KEY, Role.VALUE, Role.ATTENTION_OUTPUT, Role.GATE_UP, Role.DOWN}


def block_scaled_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the same model in block-scaled fp8."""
    return {
        **config,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        },
    }


def is_block_scaled(config: Mapping[str, Any]) -> bool:
    return "quantization_config" in config


def write_block_scaled(path: Path, config: Mapping[str, Any], seed: int) -> None:
    """Write the random weights of ``config`` to ``path``, a safetensors file.

    Raises:
        ValueError: experts are stacked in one tensor; no published checkpoint has these so.
    """
    import torch
    from safetensors.torch import save_file

    roles = {spec.name: spec.role for spec in model_tensors(config)}
    tensors: dict[str, torch.Tensor] = {}
    for name, values in random_weights(config, seed).items():
        tensor = torch.from_numpy(values)
        if roles[name] not in QUANTISED:
            tensors[name] = tensor
        elif tensor.dim() != 2:
            raise ValueError(f"{name} is no matrix, and fp8 checkpoints have matrices only")
        else:
            tensors[name], tensors[f"{name}_scale_inv"] = quantise(tensor)
    save_file(tensors, path, metadata={"format": "pt"})


def quantise(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[n, k]`` float32 -> e4m3 ``[n, k]`` and scales ``[ceil(n / 128), ceil(k / 128)]`` float32."""
    import torch
    from torch.nn.functional import pad

    n, k = matrix.shape
    padded = pad(matrix, (0, -k % BLOCK, 0, -n % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))  # [n/128, 128, k/128, 128]
    scales = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-12) / LARGEST
    narrow = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    narrow = narrow.view(torch.uint8).reshape(padded.shape)[:n, :k].contiguous()
    return narrow.view(torch.float8_e4m3fn), scales
