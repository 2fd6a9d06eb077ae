"""What the hooks rely on in SGLang, and the check that it is there.

The hooks override or call the functions below. A SGLang in which one of them is missing or takes
other arguments would run, and compute something else; so every process that runs a scheduler, and the
launcher before them, compares and refuses.
"""

from __future__ import annotations

import inspect
import pkgutil

from layered_sglang.config import ConfigError

SGLANG_VERSION = "0.5.17"

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"
_COMPONENTS = "sglang.srt.managers.scheduler_components"
_WEIGHTS = f"{_COMPONENTS}.weight_updater"
_BATCH = "sglang.srt.managers.schedule_batch"
_RUNNER = "sglang.srt.model_executor.model_runner:ModelRunner"
_GRAPHS = "sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner"
_POOLS = "sglang.srt.mem_cache.kv_cache_configurator:KVCacheConfigurator"
_LATENT = "sglang.srt.models.deepseek_v2:DeepseekV2AttentionMLA"
_WIDE = "sglang.srt.models.deepseek_common.attention_forward_methods.forward_mha:DeepseekMHAForwardMixin"
_LATENT_PREFIX = (
    "sglang.srt.model_executor.forward_batch_deepseek_mha_mixin:ForwardBatchDeepSeekMHAMixin"
)
_BREAKABLE = (
    "sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph.breakable_cuda_graph"
)

#: Function -> its parameters (without ``self``), as pinned.
PINNED: dict[str, str] = {
    f"{_SCHEDULER}.__init__": "server_args port_args gpu_id tp_rank moe_ep_rank pp_rank attn_cp_rank "
    "moe_dp_rank dp_rank",
    f"{_SCHEDULER}.init_tp_model_worker": "",
    f"{_SCHEDULER}.init_pool_stats_observer": "",
    f"{_SCHEDULER}.init_weight_updater": "",
    f"{_WEIGHTS}:SchedulerWeightUpdaterManager.update_weights_from_disk": "recv_req",
    f"{_WEIGHTS}:SchedulerWeightUpdaterManager.update_weights_from_distributed": "recv_req",
    f"{_WEIGHTS}:SchedulerWeightUpdaterManager.update_weights_from_tensor": "recv_req",
    f"{_WEIGHTS}:SchedulerWeightUpdaterManager.update_weights_from_ipc": "recv_req",
    f"{_WEIGHTS}:_get_draft_model_runner": "draft_worker",
    f"{_SCHEDULER}.init_invariant_checker": "",
    f"{_SCHEDULER}.get_init_info": "",
    f"{_SCHEDULER}.init_request_receiver": "",
    f"{_SCHEDULER}.process_input_requests": "recv_reqs",
    f"{_SCHEDULER}.get_internal_state": "recv_req",
    f"{_SCHEDULER}.set_internal_state": "recv_req",
    "sglang.srt.managers.tokenizer_control_mixin:TokenizerControlMixin.get_internal_state": "",
    "sglang.srt.managers.tokenizer_control_mixin:TokenizerControlMixin.set_internal_state": "obj",
    f"{_SCHEDULER}.attach_hicache_storage_wrapped": "recv_req",
    f"{_SCHEDULER}.get_num_allocatable_reqs": "running_bs",
    f"{_SCHEDULER}.get_next_batch_to_run": "running_batch last_batch",
    f"{_SCHEDULER}.get_new_batch_prefill": "running_batch",
    f"{_SCHEDULER}.update_running_batch": "batch",
    f"{_SCHEDULER}._can_schedule_lora_req": "req running_loras",
    "sglang.srt.lora.lora_manager:LoRAManager.prepare_lora_batch": "forward_batch",
    "sglang.srt.lora.lora_manager:LoRAManager.fetch_new_loras": "new_loras running_loras",
    f"{_SCHEDULER}.is_fully_idle": "for_health_check",
    f"{_SCHEDULER}.run_batch": "batch pp_proxy_tensors",
    f"{_SCHEDULER}.process_batch_result": "batch result",
    f"{_SCHEDULER}.stash_chunked_request": "req",
    f"{_SCHEDULER}.process_pending_chunked_abort": "",
    f"{_SCHEDULER}.abort_request": "recv_req",
    f"{_SCHEDULER}._abort_on_running_timeout": "running_batch",
    f"{_SCHEDULER}.pause_generation": "recv_req",
    f"{_SCHEDULER}._add_request_to_queue": "req is_retracted",
    f"{_SCHEDULER}._relay_forward_payload": "future_indices batch_result",
    f"{_COMPONENTS}.invariant_checker:SchedulerInvariantChecker._get_total_uncached_sizes": "",
    f"{_COMPONENTS}.pool_stats_observer:SchedulerPoolStatsObserver.active_pool_idxs": "",
    f"{_SCHEDULER}.init_metrics_reporter": "tp_rank pp_rank dp_rank",
    f"{_SCHEDULER}.init_load_inquirer": "",
    f"{_COMPONENTS}.load_inquirer:SchedulerLoadInquirer.get_loads": "",
    f"{_COMPONENTS}.load_inquirer:SchedulerLoadInquirer.get_num_waiting_uncached_tokens": "",
    f"{_COMPONENTS}.load_inquirer:SchedulerLoadInquirer._get_num_pending_tokens": "chunk_deduct",
    f"{_COMPONENTS}.metrics_reporter:SchedulerMetricsReporter.__init__": "scheduler tp_rank pp_rank "
    "dp_rank metrics_collector_context metrics_collector num_retracted_reqs num_paused_reqs",
    f"{_COMPONENTS}.metrics_reporter:SchedulerMetricsReporter._calculate_utilization": "",
    f"{_COMPONENTS}.request_receiver:SchedulerRequestReceiver._pull_raw_reqs": "",
    "sglang.srt.managers.schedule_policy:SchedulePolicy.calc_priority": "waiting_queue running_batch",
    "sglang.srt.managers.overlap_utils:FutureMap.publish": "future_indices new_seq_lens confidence",
    "sglang.srt.managers.tp_worker:TpModelWorker._init_model_runner": "",
    # A draft that reads the prompt behind a cohort's last layer group.
    "sglang.srt.layers.logits_processor:LogitsProcessor.forward": "input_ids hidden_states lm_head "
    "logits_metadata aux_hidden_states hidden_states_before_norm",
    f"{_SCHEDULER}.record_batch_in_overlap": "batch",
    "sglang.srt.managers.tp_worker:TpModelWorker.forward_batch_generation": "batch forward_batch "
    "pp_proxy_tensors is_verify skip_attn_backend_init capture_hidden_mode",
    f"{_RUNNER}.load_model": "",
    "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE.run_moe_core": "dispatch_output",
    "sglang.srt.layers.quantization.unquant:UnquantizedFusedMoEMethod.apply": "layer dispatch_output",
    "sglang.srt.layers.quantization.fp8:Fp8MoEMethod.apply": "layer dispatch_output",
    "sglang.srt.layers.quantization.mxfp4:Mxfp4MoEMethod.apply": "layer dispatch_output",
    "sglang.srt.utils.nvtx_utils:profile_range": "debug_name color nvtx_enabled",
    f"{_RUNNER}.init_kv_cache_configurator": "",
    "sglang.srt.mem_cache.kv_cache_configurator:KVCacheConfigurator.config_from_budget": "budget_bytes "
    "cap_tokens",
    f"{_RUNNER}.init_attention_backends": "",
    f"{_RUNNER}._get_attention_backend": "init_new_workspace",
    f"{_RUNNER}._forward_raw": "forward_batch pp_proxy_tensors reinit_attn_backend "
    "split_forward_count",
    f"{_RUNNER}._maybe_execute_deferred_mamba_cow_and_clear": "forward_batch",
    f"{_RUNNER}.init_cuda_graphs": "capture_decode_cuda_graph",
    f"{_GRAPHS}.__init__": "model_runner attn_backend speculative_num_steps "
    "speculative_num_draft_tokens",
    f"{_GRAPHS}.capture": "",
    f"{_GRAPHS}.capture_one_shape": "size forward stream_idx variant_label",
    f"{_GRAPHS}.capture_prepare": "size stream_idx num_tokens",
    f"{_GRAPHS}.can_run_graph": "forward_batch",
    f"{_GRAPHS}.load_batch": "forward_batch pp_proxy_tensors",
    f"{_BREAKABLE}:eager_on_graph": "enable capture_stub",
    f"{_BREAKABLE}:BreakableCUDAGraph.replay": "",
    f"{_BREAKABLE}:BreakableCUDAGraphCapture.__init__": "cuda_graph pool stream capture_error_mode "
    "barrier_fn",
    "sglang.srt.entrypoints.warmup:warmup": "name",
    f"{_RUNNER}.sample": "logits_output forward_batch",
    f"{_RUNNER}.compute_logprobs_only": "logits_output forward_batch",
    f"{_POOLS}._build_token_to_kv_pool": "sizes is_dsa_model is_dsv4_model req_to_token_pool",
    f"{_POOLS}._build_hybrid_swa_kv_pool": "full_max_total_num_tokens swa_max_total_num_tokens "
    "mha_pool_class",
    "sglang.kernels.ops.elementwise.elementwise:fused_gate_sigmoid_mul_add": "hidden_states "
    "gate_weight shared_output final_hidden_states",
    f"{_BATCH}:ScheduleBatch.copy": "",
    f"{_BATCH}:Req.init_next_round_input": "tree_cache cow_mamba",
    "sglang.srt.managers.schedule_policy:PrefillAdder.add_one_req": "req has_chunked_req "
    "truncation_align_size",
    "sglang.srt.mem_cache.base_prefix_cache:BasePrefixCache.evictable_size": "",
    "sglang.srt.mem_cache.base_prefix_cache:BasePrefixCache.full_evictable_size": "",
    f"{_BATCH}:Req.set_finish_with_abort": "error_msg",
    f"{_BATCH}:ScheduleBatch.check_decode_mem": "selected_indices",
    f"{_BATCH}:release_req": "req remaing_req_count server_args req_to_token_pool "
    "token_to_kv_pool_allocator tree_cache hisparse_coordinator offload_kv",
    "sglang.srt.managers.tp_worker:TpModelWorker.set_hicache_consumer": "consumer_index",
    "sglang.srt.managers.cache_controller:LayerDoneCounter.set_consumer": "index",
    "sglang.srt.managers.cache_controller:LayerLoadingEvent.wait": "layer_index",
    "sglang.srt.mem_cache.common:release_kv_cache": "req tree_cache is_insert",
    "sglang.srt.disaggregation.utils:prepare_abort": "req error_message status_code",
    "sglang.srt.model_executor.forward_batch_info:ForwardBatch.init_new": "batch model_runner "
    "capture_hidden_mode return_hidden_states_before_norm",
    f"{_LATENT}.dispatch_attn_forward_method": "forward_batch",
    f"{_LATENT}.forward": "positions hidden_states forward_batch zero_allocator layer_scatter_modes "
    "llama_4_scaling prev_topk_indices",
    f"{_WIDE}.forward_normal_prepare": "positions hidden_states forward_batch zero_allocator",
    f"{_WIDE}._get_mla_kv_buffer": "kv_indices dst_dtype forward_batch",
    f"{_WIDE}._concat_and_cast_mha_k": "k_nope k_pe forward_batch",
    f"{_WIDE}._chunked_prefix_attn_mha": "q accum_output accum_lse forward_batch",
    "sglang.kernels.ops.gemm:bmm_fp8": "A B A_scale B_scale dtype out",
    "sglang.kernels.ops.quantization.fp8_kernel:per_tensor_quant_mla_fp8": "x x_s_out eps",
    f"{_LATENT_PREFIX}.fetch_mha_one_shot_kv_indices": "",
    f"{_LATENT_PREFIX}.prepare_chunked_prefix_cache_info": "device",
    "sglang.srt.server_args:ServerArgs.add_cli_args": "parser",
    "sglang.srt.server_args:ServerArgs.from_cli_args": "args",
    "sglang.srt.server_args:ServerArgs.get_model_config": "",
    "sglang.srt.server_args:ServerArgs.get_attention_backends": "",
    "sglang.srt.entrypoints.http_server:add_prometheus_middleware": "app",
    "sglang.srt.entrypoints.http_server:launch_server": "server_args init_tokenizer_manager_func "
    "run_scheduler_process_func run_detokenizer_process_func execute_warmup_func launch_callback",
}


def check_pinned() -> None:
    """Compare the installed SGLang with what the hooks were written for.

    Raises:
        ConfigError: naming the version, or the first function, that differs.
    """
    import sglang

    if sglang.__version__ != SGLANG_VERSION:
        raise ConfigError(
            f"layered-sglang works with sglang {SGLANG_VERSION}, found {sglang.__version__}; "
            f"install sglang=={SGLANG_VERSION}"
        )
    for target, pinned in PINNED.items():
        name = target.replace(":", ".")
        try:
            function = pkgutil.resolve_name(target)
            if getattr(function, "__isabstractmethod__", False):
                raise AttributeError("only its abstract base has it")
        except (AttributeError, ImportError) as error:
            raise ConfigError(
                f"{name} is missing from this sglang {SGLANG_VERSION} ({error}), and layered prefill "
                "hooks it; reinstall sglang, or remove the plugin that changed it"
            ) from error
        found = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        if found != pinned.split():
            raise ConfigError(
                f"{name} takes ({', '.join(found)}) in this sglang {SGLANG_VERSION}, expected "
                f"({', '.join(pinned.split())}), and layered prefill hooks it; reinstall sglang, or "
                "remove the plugin that changed it"
            )
