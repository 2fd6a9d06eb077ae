"""Nominal coefficients by GPU, for a start without a profile. They are data-sheet figures times the
share that kernels usually reach, not measurements; the online correction makes up for the rest."""

from __future__ import annotations

from layered_sglang.scheduling.cost_model import Coefficients

#: Part of a GPU's name -> (memory bandwidth in bytes/s, dense bf16 flop/s), from data sheets.
_DATA_SHEETS = {  # the first name that fits counts
    "GH200": (4.0e12, 989e12),
    "H200": (4.8e12, 989e12),
    "H100 PCIe": (2.0e12, 756e12),
    "H100": (3.35e12, 989e12),
    "H800": (3.35e12, 989e12),
    "H20": (4.0e12, 148e12),
    "B200": (8.0e12, 2250e12),
    "B300": (8.0e12, 2250e12),
    "A100": (2.0e12, 312e12),
    "L40S": (0.86e12, 362e12),
}
_UNKNOWN_GPU = (2.0e12, 300e12)
#: A few CPU cores: the order of magnitude, so that the correction has not far to go.
_CPU = Coefficients(
    weight_bandwidth=1e10,
    matmul_flops=5e10,
    expert_bandwidth=5e9,
    expert_flops=2e10,
    kv_bandwidth=5e9,
    attention_flops=2e10,
    layer_seconds=2e-4,
    row_seconds=2e-7,
    iteration_seconds=2e-3,
    host_eager_layer=5e-4,
)
#: Host seconds of an active layer with latent attention, launched eagerly and replaying graphs:
#: DeepSeek-V2-Lite on an H200 (benchmarks/results/2026-11-26-h200-latent-layers.md).
_LATENT_HOST = {"host_eager_layer": 1.8e-3, "host_graph_layer": 3.2e-4}


def nominal_coefficients(device_name: str | None, latent: bool = False) -> tuple[Coefficients, str]:
    """Coefficients for a GPU's name (``None``: a CPU), and the name they were made for.

    Args:
        device_name: of the GPU.
        latent: whether the model's attention is.
    """
    if device_name is None:
        return _CPU, "a CPU"
    name, (bandwidth, flops) = next(
        ((key, sheet) for key, sheet in _DATA_SHEETS.items() if key in device_name),
        ("an unknown GPU", _UNKNOWN_GPU),
    )
    return (
        Coefficients(
            weight_bandwidth=0.8 * bandwidth,
            matmul_flops=0.6 * flops,
            expert_bandwidth=0.8 * bandwidth,
            expert_flops=0.45 * flops,
            kv_bandwidth=0.6 * bandwidth,
            attention_flops=0.5 * flops,
            **(_LATENT_HOST if latent else {}),
        ),
        name,
    )
