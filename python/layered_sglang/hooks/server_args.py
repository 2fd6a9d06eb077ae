"""Our flags on SGLang's command line, and our configuration on its ``ServerArgs``."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from layered_sglang import config, platforms
from layered_sglang.config import ConfigError, LayeredConfig
from layered_sglang.executor.architectures import architecture_of
from layered_sglang.moe.selection import why_no_kernels
from layered_sglang.scheduling.graph_sizes import fine_sizes, stock_sizes
from layered_sglang.scheduling.model_shape import num_experts
from layered_sglang.scheduling.profile import CostProfile, ProfileError

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

# A leading underscore keeps it outside SGLang's read-only check; it travels to the scheduler
# processes with the pickled ServerArgs.
_ATTRIBUTE = "_layered_config"

#: SGLang's default of ``--max-prefill-tokens``, which may be less than a cohort.
MAX_PREFILL_TOKENS = 16_384


def layered_config(server_args: ServerArgs) -> LayeredConfig:
    """The configuration that rides on ``server_args``.

    Raises:
        ConfigError: if these arguments did not come through our launcher.
    """
    value = getattr(server_args, _ATTRIBUTE, None)
    if value is None:
        raise ConfigError(
            "these server arguments carry no layered prefill configuration; start the server with "
            "python -m layered_sglang.launch_server"
        )
    return value


def add_flags(_result: None, parser: argparse.ArgumentParser) -> None:
    """Hook after ``ServerArgs.add_cli_args``."""
    config.add_flags(parser)


def build_with_layered_config(
    original: Callable[..., ServerArgs], cls: type[ServerArgs], namespace: argparse.Namespace
) -> ServerArgs:
    """Hook around ``ServerArgs.from_cli_args``: validate before, attach and refuse after."""
    layered = config.from_namespace(namespace)
    platforms.fill_defaults(namespace)
    if layered.moe_kernels == "layered":
        _refuse_device(namespace.device)
    if layered.layered:
        _take_chunk_size(namespace, layered)
        _refuse_architecture(namespace.model_path)
        _check_cost_profile(layered)
        _add_warm_up(namespace)
    server_args = original(cls, namespace)
    setattr(server_args, _ATTRIBUTE, layered)
    if layered.layered:
        from layered_sglang.hooks.refusals import refuse_unsupported

        refuse_unsupported(server_args, layered)
        _take_fine_graph_sizes(server_args)
    return server_args


def _add_warm_up(namespace: argparse.Namespace) -> None:
    """Have the server send itself our warm-up's prompts, where there are kernels to warm.

    The HTTP workers of ``--tokenizer-worker-num`` are processes that know SGLang's own server alone.
    """
    if namespace.tokenizer_worker_num > 1:
        logger.warning(
            "--tokenizer-worker-num %d: these HTTP workers have no /layered_prefill and send no warm-up "
            "prompts, so the first prompts may wait longer",
            namespace.tokenizer_worker_num,
        )
    elif torch.cuda.is_available() and not namespace.skip_server_warmup:
        namespace.warmups = ",".join(filter(None, (namespace.warmups, config.WARM_UP)))


def _take_fine_graph_sizes(server_args: ServerArgs) -> None:
    """Capture decode graphs of closer batch sizes where rows load experts, unless the user chose."""
    decode = server_args.cuda_graph_config.decode
    experts = num_experts(server_args.get_model_config().hf_text_config.to_dict())
    # Other sizes than SGLang's own were asked for: --cuda-graph-bs-decode, --disable-cuda-graph-padding.
    if server_args.device == "cuda" and experts and decode.bs == stock_sizes(decode.max_bs):
        decode.bs = fine_sizes(decode.max_bs)


def _refuse_device(device: str | None) -> None:
    """Refuse ``--moe-kernels layered`` where no model's experts could be served."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    why = why_no_kernels(torch.device(device, 0) if device == "cuda" else torch.device(device))
    if why:
        raise ConfigError(
            f"--moe-kernels layered cannot compute the experts: {why}; "
            "use --moe-kernels auto or sglang"
        )


def _check_cost_profile(config: LayeredConfig) -> None:
    """Refuse a ``--cost-profile`` that cannot be read, before anything starts.

    Raises:
        ConfigError: one line.
    """
    if config.cost_profile is not None:
        try:
            CostProfile.read(Path(config.cost_profile))
        except ProfileError as error:
            raise ConfigError(f"--cost-profile {error}") from error


def _refuse_architecture(model_path: str) -> None:
    """Refuse an unsupported model in a local folder before SGLang resolves its arguments for it,
    which for some models already needs a GPU. Any other model is refused once SGLang knows it."""
    config_file = Path(model_path) / "config.json"
    if config_file.is_file():
        architectures = json.loads(config_file.read_text()).get("architectures")
        if architectures:
            architecture_of(architectures)


def _take_chunk_size(namespace: argparse.Namespace, layered: LayeredConfig) -> None:
    """Make SGLang's admission cut prompts where layered prefill wants them cut."""
    size = layered.layered_max_prefill_tokens
    if namespace.chunked_prefill_size not in (None, size):
        raise ConfigError(
            f"--chunked-prefill-size {namespace.chunked_prefill_size} contradicts "
            f"--layered-max-prefill-tokens {size}, which takes its place when prompts are layered; "
            "leave it out"
        )
    if namespace.max_prefill_tokens < size and namespace.max_prefill_tokens != MAX_PREFILL_TOKENS:
        raise ConfigError(
            f"--max-prefill-tokens {namespace.max_prefill_tokens} is less than "
            f"--layered-max-prefill-tokens {size}, the most tokens of prompts computed together when "
            "they are layered; leave it out, or lower --layered-max-prefill-tokens"
        )
    namespace.chunked_prefill_size = size
    namespace.max_prefill_tokens = max(namespace.max_prefill_tokens, size)
