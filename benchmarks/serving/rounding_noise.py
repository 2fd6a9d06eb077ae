"""How far bfloat16's rounding alone moves log-probabilities of a model with drawn weights.

Two servers whose expert kernels round at other places differ by about as much; moe_kernels_in_server.py
measures that. Here one model that is drawn as theirs are (drawn_weights.py), narrower and with as many
layers and experts, runs by transformers on the CPU in float32 and in bfloat16, with the same weights.

  python benchmarks/serving/rounding_noise.py gpt-oss-20b qwen3-30b-a3b      # two minutes
"""

from __future__ import annotations

import argparse
import math
import zlib

import torch
from drawn_weights import MXFP4_DEVIATION, standard_deviation
from layered_sglang.model_zoo import find_preset
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS, VOCABULARY = 160, 20_000
#: Of the published model's width.
NARROWER = 4
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def narrowed(name: str) -> dict:
    """config.json of a preset, a fourth as wide; heads of 64 keep their width."""
    config = dict(find_preset(name).config)
    for field in (
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_attention_heads",
    ):
        if field in config:
            config[field] //= NARROWER
    config |= {"num_key_value_heads": config["num_attention_heads"] // 4, "vocab_size": VOCABULARY}
    unwanted = (
        "quantization_config",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "torch_dtype",
    )
    return {key: value for key, value in config.items() if key not in unwanted}


@torch.no_grad()
def draw(model: torch.nn.Module, mxfp4: bool) -> None:
    for name, parameter in model.named_parameters():
        if "bias" in name or parameter.dim() == 1:
            parameter.fill_(0.0 if "bias" in name else 1.0)
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        # transformers stacks experts, and gpt-oss's are [experts, in, out].
        transposed = mxfp4 and ".experts." in name
        shape = parameter.shape[:-2] + parameter.shape[:-3:-1] if transposed else parameter.shape
        deviation = standard_deviation(f"{name}.weight" if transposed else name, shape)
        if transposed:
            values = torch.cat([E2M1, -E2M1])
            drawn = values[torch.randint(0, 16, parameter.shape, generator=generator)]
            parameter.copy_(drawn * 2.0 ** round(math.log2(deviation / MXFP4_DEVIATION)))
        else:
            parameter.normal_(0.0, deviation, generator=generator)


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logits.gather(1, ids[0, 1:, None])[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="PRESET", help="of layered_sglang.make_model")
    for name in parser.parse_args().models:
        config = narrowed(name)
        made = AutoConfig.for_model(config.pop("model_type"), **config)
        model = AutoModelForCausalLM.from_config(made, attn_implementation="eager").float().eval()
        draw(model, mxfp4=name.startswith("gpt-oss"))
        model = model.bfloat16().float()
        ids = torch.randint(0, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(1))
        exact = log_probabilities(model, ids)
        difference = (log_probabilities(model.bfloat16(), ids) - exact).abs()
        rms, spread = difference.square().mean().sqrt(), exact.std()
        text = f"mean {difference.mean():.4f}, rms {rms:.4f}, max {difference.max():.4f}"
        print(f"{name}: {text}, rms/spread {rms / spread:.4f}, spread {spread:.2f}", flush=True)


if __name__ == "__main__":
    main()
