"""What encodes images in a tiny model of the Qwen3-VL kind: its weights, and how images are cut."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

#: Bounds of an image's area in pixels; larger ones are scaled down.
PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}


def vision_weights(config: Mapping[str, Any], seed: int, routes: int) -> dict[str, np.ndarray]:
    """Draw the weights of ``vision_config``: float32 arrays by tensor name.

    Args:
        routes: channels of the language model's residual stream that name a token's route: every image
            token takes the first one (``weights.py``).
    """
    import numpy as np

    weights: dict[str, np.ndarray] = {}
    for name, shape in _tensors(config):
        full = f"model.visual.{name}"
        digest = hashlib.sha256(f"{seed}/{full}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        values = generator.standard_normal(shape)
        if name.endswith(".bias"):
            values *= 0.1
        elif ".norm" in name:
            values = 1 + 0.1 * values
        else:
            values /= np.prod(shape[1:]) ** 0.5
        if "linear_fc2" in name and "merger" in name:
            values[:routes] = 0.0
            if name == "merger.linear_fc2.bias":
                values[0] = routes**0.5
        weights[full] = values.astype("float32")
    return weights


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names below ``model.visual`` and shapes."""
    hidden, inter, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    merged = hidden * config["spatial_merge_size"] ** 2
    patches = (config["in_channels"], config["temporal_patch_size"], patch, patch)
    yield "patch_embed.proj.weight", (hidden, *patches)
    yield "patch_embed.proj.bias", (hidden,)
    yield "pos_embed.weight", (config["num_position_embeddings"], hidden)
    layers = {
        "attn.qkv": (3 * hidden, hidden),
        "attn.proj": (hidden, hidden),
        "mlp.linear_fc1": (inter, hidden),
        "mlp.linear_fc2": (hidden, inter),
    }
    linear = {
        f"blocks.{i}.{name}": shape
        for i in range(config["depth"])
        for name, shape in layers.items()
    }
    # Each gives what is added to the images' rows behind one of the first decoder layers.
    deep = [f"deepstack_merger_list.{i}" for i in range(len(config["deepstack_visual_indexes"]))]
    for merger in ("merger", *deep):
        linear[f"{merger}.linear_fc1"] = (merged, merged)
        linear[f"{merger}.linear_fc2"] = (config["out_hidden_size"], merged)
    for name, shape in linear.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    norms = [f"blocks.{i}.norm{n}" for i in range(config["depth"]) for n in (1, 2)]
    widths = dict.fromkeys((*norms, "merger.norm"), hidden)
    widths |= {f"{merger}.norm": merged for merger in deep}
    for name, width in widths.items():
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)


def processor_config(config: Mapping[str, Any], video: bool) -> dict[str, Any]:
    """Return preprocessor_config.json, or video_preprocessor_config.json."""
    kind = "video" if video else "image"
    return {
        f"{kind}_processor_type": "Qwen3VLVideoProcessor" if video else "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "merge_size": config["spatial_merge_size"],
        "patch_size": config["patch_size"],
        "size": PIXELS,
        "temporal_patch_size": config["temporal_patch_size"],
    }
