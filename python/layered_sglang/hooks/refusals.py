"""What layered prefill cannot work with yet: refused at start-up, by name, with the way on.

One line of the table is one refusal: what was asked for, and why a cohort in flight cannot honour it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from layered_sglang.config import ConfigError, LayeredConfig
from layered_sglang.executor.architectures import Architecture, architecture_of

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

WAY_ON = "use --prefill-schedule chunked to serve with SGLang's own prefill"


#: Speculative algorithms (NEXTN is EAGLE to SGLang).
SPECULATIVE = ("EAGLE", "EAGLE3", "STANDALONE")


class Refusal(NamedTuple):
    flag: str
    asked: Callable[[ServerArgs], object]
    why: str
    way_on: str = WAY_ON

    def line(self) -> str:
        return f"layered prefill does not work with {self.flag} yet: {self.why}; {self.way_on}"


#: Also asked for while serving: ``/hicache/storage-backend``.
HOST_CACHE_STORE = Refusal(
    "--hicache-storage-backend",
    lambda a: a.hicache_storage_backend is not None,
    "admission skips prompts while their KV is fetched, and the planner does not know which",
)

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "--speculative-algorithm",
        lambda a: a.speculative_algorithm not in (None, *SPECULATIVE) or a.enable_multi_layer_eagle,
        f"prompts were tried with {', '.join(SPECULATIVE)} (and one draft layer) only",
    ),
    Refusal(
        "--speculative-algorithm and --enable-lora",
        lambda a: a.speculative_algorithm and (a.enable_lora or a.lora_paths),
        "adapters are loaded for one batch, and decode is several",
    ),
    Refusal(
        "--speculative-algorithm and --enable-hierarchical-cache",
        lambda a: a.speculative_algorithm and a.enable_hierarchical_cache,
        "layer groups are not known to wait for a draft's keys and values",
    ),
    Refusal(
        "--decoupled-spec-role",
        lambda a: a.decoupled_spec_role != "null",
        "draft and verify batches are not cut by layers",
    ),
    Refusal(
        "--pp-size",
        lambda a: a.pp_size > 1,
        "a pipeline rank holds only some of the layers that a cohort passes one after the other",
    ),
    Refusal(
        "--dwdp-size",
        lambda a: a.dwdp_size > 1,
        "it fetches experts in the order of whole forward passes, under attention data parallelism",
    ),
    Refusal(
        "--enable-dp-attention",
        lambda a: a.enable_dp_attention,
        "its ranks exchange token counts once per forward pass, not per layer group",
    ),
    Refusal(
        "--attn-cp-size",
        lambda a: a.attn_cp_size > 1,
        "context parallelism reorders a prompt's tokens for a whole forward pass",
    ),
    Refusal(
        "--dcp-size", lambda a: a.dcp_size > 1, "decode context parallelism lays out KV its own way"
    ),
    Refusal("--moe-dp-size", lambda a: a.moe_dp_size > 1, "its ranks do not share one plan"),
    Refusal(
        "--enable-pdmux", lambda a: a.enable_pdmux, "it splits prefill by layers on its own streams"
    ),
    Refusal(
        "--disaggregation-mode",
        lambda a: a.disaggregation_mode != "null",
        "a prefill-only or decode-only instance has nothing to run side by side",
    ),
    Refusal(
        "--enable-lora-overlap-loading",
        lambda a: a.enable_lora_overlap_loading,
        "it loads adapters without knowing those of the prompts that are half computed",
    ),
    Refusal(
        "--enable-two-batch-overlap",
        lambda a: a.enable_two_batch_overlap,
        "it splits batches that the active layer group joins",
    ),
    Refusal(
        "--enable-single-batch-overlap",
        lambda a: a.enable_single_batch_overlap,
        "it overlaps parts of a layer across the joined batch",
    ),
    Refusal("--is-embedding", lambda a: a.is_embedding, "embedding models do not decode"),
    Refusal(
        "--dllm-algorithm", lambda a: a.dllm_algorithm, "diffusion models do not decode by token"
    ),
    Refusal(
        "--enable-mixed-chunk",
        lambda a: a.enable_mixed_chunk,
        "layered prefill joins prompt and decode rows in its own way",
        "leave it out",
    ),
    Refusal(
        "--moe-a2a-backend",
        lambda a: a.moe_a2a_backend != "none",
        "all-to-all dispatch buffers are sized per forward pass",
    ),
    Refusal(
        "--enable-eplb",
        lambda a: a.enable_eplb,
        "it would move experts between GPUs while a cohort is half computed, which was not tried",
        "leave it out (--ep works without), or use --prefill-schedule chunked",
    ),
    Refusal(
        "--elastic-ep-backend", lambda a: a.elastic_ep_backend, "ranks may leave during a cohort"
    ),
    HOST_CACHE_STORE,
    Refusal("--enable-lmcache", lambda a: a.enable_lmcache, "it stores KV per forward pass"),
    Refusal("--enable-flexkv", lambda a: a.enable_flexkv, "it stores KV per forward pass"),
    Refusal(
        "--radix-cache-backend",
        lambda a: a.radix_cache_backend is not None,
        "a prefix cache from elsewhere may read or store KV before a cohort has passed all layers",
    ),
    Refusal("--enable-hisparse", lambda a: a.enable_hisparse, "it owns the prefill transition"),
    Refusal(
        "--enable-unified-memory",
        lambda a: a.enable_unified_memory,
        "it moves KV between forward passes while a cohort is half computed",
    ),
    Refusal(
        "--enable-return-routed-experts",
        lambda a: a.enable_return_routed_experts,
        "experts are recorded per forward pass, and a cohort has several",
    ),
    Refusal(
        "--expert-distribution-recorder-mode",
        lambda a: a.expert_distribution_recorder_mode in ("per_pass", "per_token"),
        "experts are recorded per forward pass, and a cohort has several",
    ),
    Refusal("--kv-canary", lambda a: a.kv_canary != "none", "it checks KV per forward pass"),
    Refusal(
        "--enable-torch-compile",
        lambda a: a.enable_torch_compile,
        "compiled forward passes hold all layers",
    ),
    Refusal(
        "--model-impl",
        lambda a: a.model_impl not in ("auto", "sglang"),
        "layer groups run through SGLang's own model code",
    ),
    Refusal(
        "--offload-group-size",
        lambda a: a.offload_group_size > 0,
        "it fetches weights in the order of whole forward passes",
    ),
    Refusal(
        "--kt-weight-path",
        lambda a: a.kt_weight_path,
        "it may defer experts to the next layer, and a cohort may stop before that one",
    ),
    Refusal(
        "--enable-attn-tp-input-scattered",
        lambda a: a.enable_attn_tp_input_scattered,
        "it scatters a prompt's tokens over ranks for a whole forward pass",
    ),
    Refusal(
        "--enable-mis",
        lambda a: a.enable_mis,
        "its attention within a prompt is planned for prompts that do not run beside decode",
    ),
    Refusal(
        "--debug-tensor-dump-output-folder",
        lambda a: a.debug_tensor_dump_output_folder,
        "it writes the tensors of whole forward passes",
    ),
    Refusal(
        "--msprobe-dump-config",
        lambda a: a.msprobe_dump_config,
        "it writes the tensors of whole forward passes",
    ),
    Refusal(
        "--forward-hooks",
        lambda a: a.forward_hooks,
        "hooks on the model and its decoder would not be called, or once a layer group",
    ),
    Refusal(
        "--enable-forward-pass-metrics",
        lambda a: a.enable_forward_pass_metrics,
        "it reports a forward pass as prefill or as decode, and those with a layer group are both",
        "leave it out (--enable-metrics works), or use --prefill-schedule chunked",
    ),
    Refusal(
        "--enable-linear-replayssm",
        lambda a: a.enable_linear_replayssm or a.enable_linear_replayssm_spec,
        "states are then behind by tokens that are counted per forward pass",
    ),
    Refusal("--use-ray", lambda a: a.use_ray, "its scheduler actors are not hooked"),
    Refusal(
        "--smg-grpc-mode", lambda a: a.smg_grpc_mode or a.grpc_mode, "its server is not hooked"
    ),
    Refusal(
        "--language-only",
        lambda a: a.language_only,
        "images come from an encoder's server while their prompts wait, and the planner does not know "
        "which",
    ),
    Refusal("--encoder-only", lambda a: a.encoder_only, "an encoder has no decode"),
)


def refuse_unsupported(server_args: ServerArgs, layered: LayeredConfig) -> None:
    """Refuse what cannot work, before the model loads.

    Args:
        server_args: SGLang's arguments, resolved.
        layered: our flags, validated.

    Raises:
        ConfigError: one line: what, why, what to do.
    """
    for refusal in REFUSALS:
        if refusal.asked(server_args):
            raise ConfigError(refusal.line())
    if layered.layered_max_prefill_tokens % server_args.page_size:
        raise ConfigError(
            f"--layered-max-prefill-tokens {layered.layered_max_prefill_tokens} must be a multiple "
            f"of --page-size {server_args.page_size}, or chunks would end inside a KV page"
        )
    _refuse_model(server_args, layered)


def _refuse_model(server_args: ServerArgs, layered: LayeredConfig) -> None:
    """Refuse an architecture outside the registry, and more layer groups than it has layers."""
    model = server_args.get_model_config()
    names = list(model.hf_config.architectures or ["a model without an architecture"])
    architecture = architecture_of(names)
    if architecture.latent:
        _refuse_attention_backends(server_args)
    kind = _unlike_others(architecture)
    if kind in ("latent attention", "linear attention") and (
        server_args.enable_lora or server_args.lora_paths
    ):
        raise ConfigError(
            f"layered prefill does not work with --enable-lora and {kind} yet: adapters differ between "
            f"prompt and decode rows, which run as one batch; {WAY_ON}"
        )
    if kind == "linear attention" and server_args.speculative_algorithm:
        raise ConfigError(
            f"layered prefill does not work with --speculative-algorithm and {kind} yet: states are "
            f"rolled back to what was accepted, beside prompts whose states advance; {WAY_ON}"
        )
    if server_args.enable_hierarchical_cache and kind:
        raise ConfigError(
            f"layered prefill does not work with --enable-hierarchical-cache and {kind} yet: layer "
            "groups are known to wait for keys and values loaded from the host in plain pools only; "
            f"{WAY_ON}"
        )
    for what, present in (
        ("multimodal prompts", model.is_multimodal and not architecture.images),
        ("encoder-decoder models", model.is_encoder_decoder),
    ):
        if present:
            raise ConfigError(f"layered prefill does not support {what} yet; {WAY_ON}")
    groups = layered.num_layer_groups
    if groups is not None and groups > model.num_hidden_layers:
        raise ConfigError(
            f"--num-layer-groups {groups} is more than the model's {model.num_hidden_layers} layers; "
            f"choose 1 to {model.num_hidden_layers}"
        )


def _unlike_others(architecture: Architecture) -> str | None:
    """What sets its attention apart; None: nothing does."""
    if architecture.latent:
        return "latent attention"
    if architecture.linear:
        return "linear attention"
    return "attention windows" if architecture.windows else None


#: Attention backends whose prompts may be given as decode is: latent, straight to the cache.
LATENT_BACKENDS = ("fa3", "triton", "torch_native")


def _refuse_attention_backends(server_args: ServerArgs) -> None:
    """Refuse what a model with latent attention cannot mix prompt and decode rows on."""
    for backend in server_args.get_attention_backends():
        if backend not in LATENT_BACKENDS:
            raise ConfigError(
                f"layered prefill does not work with --attention-backend {backend} and latent attention "
                "yet: it projects prompts and decode rows in ways that do not mix; use "
                f"--attention-backend {LATENT_BACKENDS[0]} or {LATENT_BACKENDS[1]}, or "
                "--prefill-schedule chunked"
            )
