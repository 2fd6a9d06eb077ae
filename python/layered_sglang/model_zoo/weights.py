"""Random weights whose greedy decoding is stable under a change of summation order.

Tests compare tokens between schedules that batch the same rows differently, so float noise must
not decide a token or an expert. The layers amplify noise little (a logprob moves by at most some 60
times a relative error made in every block), logits are spread wide, and experts are chosen by a part
of the residual stream that no noise reaches: the first ``ROUTES`` channels name the token's route, no
block writes to them, and the routers read nothing else. Its logits keep their distances whatever the
batch, where those of a context would come within rounding of each other every few thousand tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layered_sglang.model_zoo.tensors import Role, TensorSpec, model_tensors, text_part
from layered_sglang.model_zoo.tokenizer import BYTES, TOKENS
from layered_sglang.model_zoo.vision import vision_weights

if TYPE_CHECKING:
    import numpy as np

#: Channels of the residual stream that name a token's route; tokens of a route share their experts.
ROUTES = 8

#: Models that add one to what their checkpoints call a norm's weight.
NORMS_ADD_ONE = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")


@dataclass(frozen=True)
class WeightScales:
    """Scales of the random values; a matrix is drawn from N(0, scale²/fan_in).

    query_key: attention logits get a standard deviation of its square. Above one, so that a few
        tokens stand out and a continuation depends on its prompt; at one, attention averages a long
        prompt to nothing and decoding falls into a cycle of the last token.
    attention_output, down: what a block adds to the residual stream, against an embedding of one.
    router: standard deviation of a token's gate logits in the first layer.
    router_bias: the bias that only takes part in choosing the experts: for one expert, against another.
    router_logit_bias: the bias that takes part in weighting them, too: too small to change their order,
        except that one expert is never chosen.
    sink: a head's logit without a value, against the attention logits' own spread.
    expert_bias: biases inside the experts.
    convolution: the taps of linear attention's convolution, which sums up four of them.
    decay: how fast linear attention forgets: a head's mean rate, before the token's own part.
    norm_spread: standard deviation of norm weights around their mean.
    logits: standard deviation of the logits of printable bytes; other tokens have a fraction of it,
        so that generated text is mostly readable and the end-of-text tokens are rare.
    repeat_aversion: how much of a token's own embedding its logit subtracts. The residual stream
        carries the last token to the end, and one that favours itself would repeat for ever.
    """

    embedding: float = 1.0
    query_key: float = 1.5
    value: float = 1.0
    attention_output: float = 1.25
    attention_bias: float = 0.1
    router: float = 1.5
    router_bias: float = 2.0
    router_logit_bias: float = 0.02
    sink: float = 2.0
    expert_bias: float = 0.1
    convolution: float = 0.5
    decay: float = 0.05
    gate_up: float = 1.0
    down: float = 1.5
    norm_spread: float = 0.1
    logits: float = 2.5
    repeat_aversion: float = 0.5
    special_token_fraction: float = 0.5
    unprintable_byte_fraction: float = 0.4


DEFAULT_SCALES = WeightScales()


def random_weights(
    config: Mapping[str, Any], seed: int, scales: WeightScales = DEFAULT_SCALES
) -> dict[str, np.ndarray]:
    """Draw a checkpoint for config.json: float32 arrays by tensor name.

    A tensor's values depend on the seed, its name and its shape only, so adding layers leaves the
    others as they were.
    """
    import numpy as np

    deviation_times_root_fan_in = {
        Role.QUERY_KEY: scales.query_key,
        Role.VALUE: scales.value,
        Role.ATTENTION_OUTPUT: scales.attention_output,
        Role.SHARED_EXPERT_GATE: scales.gate_up,
        Role.GATE_UP: scales.gate_up,
        Role.DOWN: scales.down,
        Role.LM_HEAD: scales.logits,
    }
    deviation = {
        Role.EMBEDDING: scales.embedding,
        Role.ATTENTION_BIAS: scales.attention_bias,
        Role.ATTENTION_OUTPUT_BIAS: scales.attention_bias,
        Role.SINK: scales.sink,
        Role.GATE_UP_BIAS: scales.expert_bias,
        Role.DOWN_BIAS: scales.expert_bias,
        Role.CONVOLUTION: scales.convolution,
        Role.DECAY_BIAS: 1.0,
    }
    norm_mean = {Role.NORM: 1.0, Role.QUERY_KEY_NORM: scales.query_key, Role.OUTPUT_NORM: 1.0}

    weights: dict[str, np.ndarray] = {}
    if "vision_config" in config:
        weights |= vision_weights(config["vision_config"], seed, ROUTES)
    specs, config = list(model_tensors(config)), text_part(config)
    embedding: np.ndarray | None = None
    routed = any(spec.role is Role.ROUTER for spec in specs)
    for spec in specs:
        values = _standard_normal(spec, seed)
        if spec.role in deviation_times_root_fan_in:
            values *= deviation_times_root_fan_in[spec.role] / spec.fan_in**0.5
        elif spec.role in deviation:
            values *= deviation[spec.role]
        elif spec.role in norm_mean:
            values = norm_mean[spec.role] * (1 + scales.norm_spread * values)
            if config["model_type"] in NORMS_ADD_ONE and spec.role is not Role.OUTPUT_NORM:
                values -= 1.0
        elif spec.role is Role.DECAY:
            values = np.log(scales.decay) + 0.5 * values
        elif spec.role is Role.ROUTER:
            values = _router(values, scales)
        elif spec.role is Role.ROUTER_BIAS:
            values = scales.router_bias * (
                (values == values.max()) * 1.0 - (values == values.min())
            )
        elif spec.role is Role.ROUTER_LOGIT_BIAS:
            never = values == values.min()
            values *= scales.router_logit_bias
            values[never] = -6.0 * scales.router
        else:
            raise ValueError(f"no random weights for {spec.name}: role {spec.role.name}")
        if spec.role is Role.DOWN and spec.routed:
            # What the model multiplies the routed experts by afterwards.
            values /= config.get("routed_scaling_factor", 1.0)
        if spec.role is Role.LM_HEAD:
            assert embedding is not None
            aversion = scales.repeat_aversion
            values -= aversion * scales.logits / spec.shape[-1] ** 0.5 * embedding
            values /= (1 + aversion**2) ** 0.5
            values *= _token_scale(spec.shape[0], scales)[:, None]
        if routed:
            _keep_routes_clean(spec, values)
        weights[spec.name] = values.astype("float32")
        if spec.role is Role.EMBEDDING:
            embedding = weights[spec.name]
    return weights


def _standard_normal(spec: TensorSpec, seed: int) -> np.ndarray:
    """Draw N(0, 1) values from a stream of the tensor's own."""
    import numpy as np

    digest = hashlib.sha256(f"{seed}/{spec.name}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(spec.shape)


def _keep_routes_clean(spec: TensorSpec, values: np.ndarray) -> None:
    """Let the route channels hold the token's route, one-hot, from the embedding to the end.

    Neighbouring token ids take different routes. The logits do not read them, or the next token would
    depend on the last one more than on the prompt.
    """
    import numpy as np

    if spec.role is Role.EMBEDDING:
        values[:, :ROUTES] = ROUTES**0.5 * np.eye(ROUTES)[np.arange(spec.shape[0]) % ROUTES]
    elif spec.role is Role.DOWN and spec.inputs_last:
        values[:, :ROUTES] = 0.0
    elif (spec.role is Role.DOWN and len(spec.shape) == 3) or spec.role is Role.DOWN_BIAS:
        values[..., :ROUTES] = 0.0
    elif spec.role in (Role.ATTENTION_OUTPUT, Role.ATTENTION_OUTPUT_BIAS, Role.DOWN):
        values[:ROUTES] = 0.0
    elif spec.role is Role.LM_HEAD:
        values[:, :ROUTES] = 0.0


def _router(normal: np.ndarray, scales: WeightScales) -> np.ndarray:
    """Return a router ``[experts, hidden]``: every route orders the experts in its own way, their
    logits evenly spaced."""
    import numpy as np

    count = normal.shape[0]
    ranks = normal[:, :ROUTES].argsort(axis=0).argsort(axis=0)
    logits = (ranks - (count - 1) / 2) / ((count**2 - 1) / 12) ** 0.5
    router = np.zeros_like(normal)
    router[:, :ROUTES] = scales.router * logits / ROUTES**0.5
    return router


def _token_scale(vocab_size: int, scales: WeightScales) -> np.ndarray:
    """Return each token's factor of the logits; ids after the last token are never generated."""
    import numpy as np

    scale = np.zeros(vocab_size)
    scale[:BYTES] = scales.unprintable_byte_fraction
    scale[[ord("\n"), *range(0x20, 0x7F)]] = 1.0
    scale[BYTES:TOKENS] = scales.special_token_fraction
    return scale
