"""Layered prefill's own flags: the one place of their names, defaults, help texts and limits."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any

#: Name of our warm-up, for SGLang's ``--warmups``.
WARM_UP = "layered_prefill"

#: Layer group policies.
POLICIES = ("slo", "fixed")

#: The paper's layer group size (arXiv 2510.08055), in prompt tokens.
LAYER_GROUP_TOKENS = 512


class ConfigError(ValueError):
    """A flag or a combination that cannot serve. The message is one line: what, why, what to do."""


class StartRefused(SystemExit):
    """The same, found in a scheduler process once the model is loaded: it passes SGLang's handlers,
    which would log a traceback, and ``hooks/scheduler_process.py`` prints the line."""


def _flag(default: Any, help: str, **argparse_options: Any) -> Any:
    return field(default=default, metadata={"help": help, "argparse": argparse_options})


@dataclass(frozen=True)
class LayeredConfig:
    """Values of the ``layered prefill`` flag group; each field is one flag of the same name."""

    prefill_schedule: str = _flag(
        "layered",
        "How waiting prompts are computed: by layer groups beside decode, or by SGLang's own "
        "chunked prefill (then this is a plain SGLang server).",
        choices=("layered", "chunked"),
    )
    layer_group_policy: str | None = _flag(
        None,
        "How many layers a cohort of prompts runs in an iteration. slo: as many as keep every running "
        "request within --itl-slo-ms, and short prompts pass long ones; fixed: one layer group per "
        "--layer-group-tokens prompt tokens, one cohort at a time. Without it: fixed where "
        "--layer-group-tokens or --num-layer-groups is given, else slo.",
        choices=POLICIES,
    )
    itl_slo_ms: float | None = _flag(
        None,
        "Inter-token latency target of running requests (policy slo); a request sets its own in "
        "custom_params.itl_slo_ms. Without one, iterations take twice a decode iteration's time, or "
        "20 ms if that is longer.",
        type=float,
        metavar="MS",
    )
    cost_profile: str | None = _flag(
        None,
        "Iteration times fitted by python -m layered_sglang.calibrate (policy slo). Without it: a "
        "shipped profile if one fits GPU, model and backend, else figures from data sheets; measured "
        "iterations correct either.",
        type=str,
        metavar="FILE",
    )
    layer_group_tokens: int | None = _flag(
        None,
        f"Prompt tokens per layer group (policy fixed; {LAYER_GROUP_TOKENS} there).",
        type=int,
        metavar="TOKENS",
    )
    num_layer_groups: int | None = _flag(
        None,
        "The same number of layer groups for every cohort, instead of --layer-group-tokens.",
        type=int,
        metavar="N",
    )
    layered_max_prefill_tokens: int = _flag(
        8192,
        "Most prompt tokens that advance together; a longer prompt is cut into chunks of this size "
        "and each chunk is layered. It takes the place of --chunked-prefill-size.",
        type=int,
        metavar="TOKENS",
    )
    layered_cuda_graph_max_tokens: int = _flag(
        4096,
        "On a GPU, layer groups of up to this many rows (prompt tokens and running requests) replay "
        "CUDA graphs; longer ones keep the GPU busy anyway. 0: none. Memory and start-up time grow "
        "with it.",
        type=int,
        metavar="TOKENS",
    )
    layered_execution: str = _flag(
        "merged",
        "How decode and a layer group share the GPU. merged: in one batch; overlapped: beyond "
        "--layered-cuda-graph-max-tokens side by side, each on its own multiprocessors, the rest merged "
        "(an experiment: one GPU, with its own set of decode graphs).",
        choices=("merged", "overlapped"),
    )
    moe_kernels: str = _flag(
        "auto",
        "What computes the experts of a MoE model; layered: layered-sglang's kernels (bfloat16 on a "
        "GPU of compute capability 9.0), or no start; sglang: SGLang's own; auto: layered's where "
        "they are known to be faster. Works with either schedule.",
        choices=("auto", "layered", "sglang"),
    )
    layered_trace_file: str | None = _flag(
        None,
        "Append one JSON line per iteration: who ran which layers when (either schedule). With --dp, "
        "replica N after the first appends to FILE.dpN.",
        type=str,
        metavar="FILE",
    )

    @property
    def layered(self) -> bool:
        return self.prefill_schedule == "layered"

    @property
    def policy(self) -> str:
        """The layer group policy in force: ``slo`` or ``fixed``."""
        if self.layer_group_policy is not None:
            return self.layer_group_policy
        return (
            "slo" if self.layer_group_tokens is None and self.num_layer_groups is None else "fixed"
        )

    @property
    def group_tokens(self) -> int:
        """Prompt tokens per layer group under ``fixed``."""
        return self.layer_group_tokens or LAYER_GROUP_TOKENS

    def validate(self) -> None:
        """Refuse impossible values.

        Raises:
            ConfigError: one line that names the flag, the value and what is allowed.
        """
        for name in ("layer_group_tokens", "num_layer_groups", "layered_max_prefill_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{flag_name(name)} must be at least 1, got {value}")
        if self.layered_cuda_graph_max_tokens < 0:
            raise ConfigError(
                "--layered-cuda-graph-max-tokens must be at least 0, "
                f"got {self.layered_cuda_graph_max_tokens}"
            )
        if self.itl_slo_ms is not None and not 0 < self.itl_slo_ms < float("inf"):
            raise ConfigError(
                f"--itl-slo-ms must be a positive number of milliseconds, got {self.itl_slo_ms}"
            )
        plans_by_time = {"itl_slo_ms": self.itl_slo_ms, "cost_profile": self.cost_profile}
        by_tokens = {
            "layer_group_tokens": self.layer_group_tokens,
            "num_layer_groups": self.num_layer_groups,
        }
        without_effect = plans_by_time if self.policy == "fixed" else by_tokens
        for name, value in without_effect.items():
            if value is not None:
                raise ConfigError(
                    f"{flag_name(name)} has no effect with layer group policy {self.policy}, which "
                    + (
                        "does not plan by time; leave it out, or choose --layer-group-policy slo"
                        if self.policy == "fixed"
                        else "plans by time; leave it out, or choose --layer-group-policy fixed"
                    )
                )


def flag_name(field_name: str) -> str:
    """``layer_group_tokens`` -> ``--layer-group-tokens``."""
    return "--" + field_name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flag group to SGLang's argument parser."""
    group = parser.add_argument_group("layered prefill")
    for f in dataclasses.fields(LayeredConfig):
        group.add_argument(
            flag_name(f.name),
            default=f.default,
            help=f"{f.metadata['help']} (default: {f.default})",
            **f.metadata["argparse"],
        )


def from_namespace(namespace: argparse.Namespace) -> LayeredConfig:
    """The validated configuration of a parsed command line.

    Raises:
        ConfigError: on an impossible value.
    """
    config = LayeredConfig(
        **{f.name: getattr(namespace, f.name) for f in dataclasses.fields(LayeredConfig)}
    )
    config.validate()
    return config
