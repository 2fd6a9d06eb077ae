"""The lines that say, once the server is up, what serves."""

from __future__ import annotations

from typing import Any

import layered_sglang
from layered_sglang.config import LayeredConfig


def _policy(config: LayeredConfig, info: dict[str, Any]) -> str:
    if config.policy != "slo":
        return info["policy"]
    target = "no target" if config.itl_slo_ms is None else f"{config.itl_slo_ms:g} ms"
    return f"slo, {target}; costs from the {info['costs']}"


def banner(config: LayeredConfig, scheduler_info: dict[str, Any], kernels: str) -> str:
    """The start-up banner.

    Args:
        config: the flags in force.
        scheduler_info: what the scheduler said of itself (``LayeredScheduler.get_init_info``).
        kernels: the state of the expert operators, one phrase.
    """
    import sglang
    import torch

    info = scheduler_info["layered_sglang"]
    rows = {
        "versions": f"layered-sglang {layered_sglang.__version__}, sglang {sglang.__version__}, "
        f"torch {torch.__version__}",
        "device": info["gpu"] or info["device"],
        "layer groups": f"{_policy(config, info)}; {info['layers']} layers; cohorts of up to "
        f"{config.layered_max_prefill_tokens} tokens",
        "execution": f"{info['execution']}, attention {info['attention']}, overlap "
        f"{'on' if info['overlap'] else 'off'}",
        "layer graphs": info["graphs"],
        "memory": info["memory"],
        "experts": info["experts"],
        "operators": kernels,
    }
    width = max(map(len, rows))
    return "\n".join(
        ["layered prefill is on"] + [f"  {name:<{width}}  {text}" for name, text in rows.items()]
    )
