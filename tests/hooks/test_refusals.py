"""What cannot work with layered prefill is refused by name, with the reason and the way on."""

from __future__ import annotations

import dataclasses
import types

import pytest
from layered_sglang.config import ConfigError, LayeredConfig, StartRefused
from layered_sglang.executor.architectures import ARCHITECTURES, architecture_of

refusals = pytest.importorskip("layered_sglang.hooks.refusals")

#: Flag -> the ServerArgs values that ask for it.
ASKED = {
    "--speculative-algorithm": {"speculative_algorithm": "NGRAM"},
    "--speculative-algorithm and --enable-lora": {
        "speculative_algorithm": "EAGLE",
        "enable_lora": True,
    },
    "--speculative-algorithm and --enable-hierarchical-cache": {
        "speculative_algorithm": "EAGLE",
        "enable_hierarchical_cache": True,
    },
    "--decoupled-spec-role": {"decoupled_spec_role": "verifier"},
    "--pp-size": {"pp_size": 2},
    "--dwdp-size": {"dwdp_size": 2, "enable_dp_attention": True},
    "--enable-dp-attention": {"enable_dp_attention": True},
    "--attn-cp-size": {"attn_cp_size": 2},
    "--dcp-size": {"dcp_size": 2},
    "--moe-dp-size": {"moe_dp_size": 2},
    "--enable-pdmux": {"enable_pdmux": True},
    "--disaggregation-mode": {"disaggregation_mode": "prefill"},
    "--enable-lora-overlap-loading": {"enable_lora_overlap_loading": True},
    "--enable-two-batch-overlap": {"enable_two_batch_overlap": True},
    "--enable-single-batch-overlap": {"enable_single_batch_overlap": True},
    "--is-embedding": {"is_embedding": True},
    "--dllm-algorithm": {"dllm_algorithm": "LowConfidence"},
    "--enable-mixed-chunk": {"enable_mixed_chunk": True},
    "--moe-a2a-backend": {"moe_a2a_backend": "deepep"},
    "--enable-eplb": {"enable_eplb": True},
    "--elastic-ep-backend": {"elastic_ep_backend": "mooncake"},
    "--hicache-storage-backend": {"hicache_storage_backend": "file"},
    "--enable-lmcache": {"enable_lmcache": True},
    "--enable-flexkv": {"enable_flexkv": True},
    "--radix-cache-backend": {"radix_cache_backend": "elsewhere"},
    "--enable-hisparse": {"enable_hisparse": True},
    "--enable-unified-memory": {"enable_unified_memory": True},
    "--enable-return-routed-experts": {"enable_return_routed_experts": True},
    "--expert-distribution-recorder-mode": {"expert_distribution_recorder_mode": "per_token"},
    "--kv-canary": {"kv_canary": "log"},
    "--enable-torch-compile": {"enable_torch_compile": True},
    "--model-impl": {"model_impl": "transformers"},
    "--offload-group-size": {"offload_group_size": 2},
    "--kt-weight-path": {"kt_weight_path": "/experts"},
    "--enable-attn-tp-input-scattered": {"enable_attn_tp_input_scattered": True},
    "--enable-mis": {"enable_mis": True},
    "--debug-tensor-dump-output-folder": {"debug_tensor_dump_output_folder": "/dump"},
    "--msprobe-dump-config": {"msprobe_dump_config": "/dump.json"},
    "--forward-hooks": {"forward_hooks": [{"target_modules": ["model"]}]},
    "--enable-forward-pass-metrics": {"enable_forward_pass_metrics": True},
    "--enable-linear-replayssm": {"enable_linear_replayssm": True},
    "--use-ray": {"use_ray": True},
    "--smg-grpc-mode": {"smg_grpc_mode": True},
    "--language-only": {"language_only": True},
    "--encoder-only": {"encoder_only": True},
}


@pytest.fixture(scope="module")
def plain_args() -> dict:
    """SGLang's own defaults for every field, with what resolution fills in."""
    from sglang.srt.server_args import ServerArgs

    values = {
        f.name: f.default
        for f in dataclasses.fields(ServerArgs)
        if f.default is not dataclasses.MISSING
    }
    return values | {"page_size": 1}


def server_args(plain: dict, architecture: str = "Qwen3MoeForCausalLM", layers: int = 8, **changed):
    model = types.SimpleNamespace(
        hf_config=types.SimpleNamespace(architectures=[architecture]),
        num_hidden_layers=layers,
        is_multimodal=changed.pop("is_multimodal", False),
        is_encoder_decoder=False,
    )
    backends = changed.pop("attention_backends", ("fa3", "fa3"))
    return types.SimpleNamespace(
        **(plain | changed),
        get_model_config=lambda: model,
        get_attention_backends=lambda: backends,
    )


def test_every_refusal_is_tested():
    assert {r.flag for r in refusals.REFUSALS} == set(ASKED)


def test_plain_arguments_pass(plain_args):
    refusals.refuse_unsupported(server_args(plain_args), LayeredConfig())


@pytest.mark.parametrize("flag", ASKED)
def test_refused_by_name_with_the_way_on(plain_args, flag):
    with pytest.raises(ConfigError) as error:
        refusals.refuse_unsupported(server_args(plain_args, **ASKED[flag]), LayeredConfig())
    line = str(error.value)
    assert line.startswith(f"layered prefill does not work with {flag} yet: ") and "\n" not in line
    way_on = line.rpartition("; ")[2]
    assert way_on.startswith(("use --prefill-schedule chunked", "leave it out"))


def test_a_store_behind_the_host_cache_is_refused_while_serving_too():
    from layered_sglang.hooks.scheduler import LayeredScheduler

    answer = LayeredScheduler.attach_hicache_storage_wrapped(object(), None)
    assert not answer.success and "--hicache-storage-backend yet" in answer.message


@pytest.mark.parametrize(
    ("asked", "cohort", "refused"),
    [
        (512, 8192, "--max-prefill-tokens 512 is less than --layered-max-prefill-tokens 8192"),
        (8192, 8192, None),
        (16384, 20000, None),  # SGLang's default makes way
    ],
)
def test_cohorts_no_larger_than_a_batch_of_prompts_may_be(asked, cohort, refused):
    from layered_sglang.hooks.server_args import _take_chunk_size

    flags = types.SimpleNamespace(chunked_prefill_size=None, max_prefill_tokens=asked)
    config = LayeredConfig(layered_max_prefill_tokens=cohort)
    if refused is not None:
        with pytest.raises(ConfigError, match=refused):
            _take_chunk_size(flags, config)
        return
    _take_chunk_size(flags, config)
    assert flags.chunked_prefill_size == cohort and flags.max_prefill_tokens == max(asked, cohort)


def test_the_default_that_makes_way_is_sglangs(plain_args):
    from layered_sglang.hooks.server_args import MAX_PREFILL_TOKENS

    assert plain_args["max_prefill_tokens"] == MAX_PREFILL_TOKENS


def test_refused_model_kinds(plain_args):
    with pytest.raises(ConfigError, match="does not support multimodal prompts yet"):
        refusals.refuse_unsupported(server_args(plain_args, is_multimodal=True), LayeredConfig())
    takes_images = server_args(plain_args, "Qwen3_5MoeForConditionalGeneration", is_multimodal=True)
    refusals.refuse_unsupported(takes_images, LayeredConfig())


def test_latent_attention_on_a_backend_that_does_not_mix(plain_args):
    def start(architecture, *backends):
        args = server_args(plain_args, architecture, attention_backends=backends)
        refusals.refuse_unsupported(args, LayeredConfig())

    start("DeepseekV3ForCausalLM", "fa3", "triton")
    start("Qwen3MoeForCausalLM", "fa3", "trtllm_mla")
    with pytest.raises(
        ConfigError, match="--attention-backend trtllm_mla and latent attention"
    ) as e:
        start("DeepseekV3ForCausalLM", "fa3", "trtllm_mla")
    assert "use --attention-backend fa3 or triton" in str(e.value)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("DeepseekV3ForCausalLM", "latent attention"),
        ("Qwen3NextForCausalLM", "linear attention"),
    ],
)
def test_adapters_with_other_attention(plain_args, architecture, kind):
    args = server_args(plain_args, architecture, enable_lora=True)
    with pytest.raises(ConfigError, match=f"--enable-lora and {kind}"):
        refusals.refuse_unsupported(args, LayeredConfig())
    refusals.refuse_unsupported(server_args(plain_args, enable_lora=True), LayeredConfig())


def test_drafts_of_linear_attention(plain_args):
    args = server_args(plain_args, "Qwen3NextForCausalLM", speculative_algorithm="EAGLE")
    with pytest.raises(ConfigError, match="--speculative-algorithm and linear attention"):
        refusals.refuse_unsupported(args, LayeredConfig())
    args = server_args(plain_args, speculative_algorithm="EAGLE")
    refusals.refuse_unsupported(args, LayeredConfig())


@pytest.mark.parametrize("captured", [[0, 2, 4], [2, 4, 8], [2, 4, 5]])
def test_drafts_that_read_what_no_layer_group_begins_with(captured):
    runner = pytest.importorskip("layered_sglang.hooks.model_runner").LayeredModelRunner
    model = types.SimpleNamespace(captured=captured, num_layers=8)
    stand_in = types.SimpleNamespace(layer_groups=types.SimpleNamespace(model=model))
    if captured == [2, 4, 5]:
        runner._refuse_captured_ends(stand_in)
        return
    with pytest.raises(StartRefused, match="does not work with a draft model that reads"):
        runner._refuse_captured_ends(stand_in)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("DeepseekV3ForCausalLM", "latent attention"),
        ("GptOssForCausalLM", "attention windows"),
        ("Qwen3NextForCausalLM", "linear attention"),
    ],
)
def test_host_cache_of_other_pools(plain_args, architecture, kind):
    def start(architecture):
        args = server_args(plain_args, architecture, enable_hierarchical_cache=True)
        refusals.refuse_unsupported(args, LayeredConfig())

    start("Qwen3MoeForCausalLM")
    with pytest.raises(ConfigError, match=f"--enable-hierarchical-cache and {kind}"):
        start(architecture)


def test_unknown_architecture_names_the_supported_ones(plain_args):
    with pytest.raises(ConfigError) as error:
        refusals.refuse_unsupported(
            server_args(plain_args, architecture="Gemma4ForCausalLM"), LayeredConfig()
        )
    assert "Gemma4ForCausalLM" in str(error.value)
    for name in ARCHITECTURES:
        assert name in str(error.value)


def test_more_layer_groups_than_layers(plain_args):
    refusals.refuse_unsupported(server_args(plain_args), LayeredConfig(num_layer_groups=8))
    with pytest.raises(ConfigError, match="9 is more than the model's 8 layers; choose 1 to 8"):
        refusals.refuse_unsupported(server_args(plain_args), LayeredConfig(num_layer_groups=9))


def test_chunks_end_on_page_borders(plain_args):
    with pytest.raises(ConfigError, match="must be a multiple of --page-size 64"):
        refusals.refuse_unsupported(
            server_args(plain_args, page_size=64), LayeredConfig(layered_max_prefill_tokens=1000)
        )


def test_architecture_lookup_takes_the_first_known():
    assert architecture_of(["Unknown", "MixtralForCausalLM"]) is ARCHITECTURES["MixtralForCausalLM"]
