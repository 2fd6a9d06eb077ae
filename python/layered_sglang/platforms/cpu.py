"""Any CPU, without SGLang's CPU kernels: slow and complete, for tests, demos and scheduling work."""

from __future__ import annotations

import os
from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

#: KV pool unless ``--max-total-tokens`` says otherwise. SGLang would take nearly half of the memory,
#: which here is everybody's.
MAX_TOTAL_TOKENS = 65_536
#: States of linear attention, likewise. A request and the radix cache take up to five.
MAX_STATES = 320


class PortableCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang's stock pools, allocators and native (PyTorch) operators on the CPU; attention sinks and
    windows are ours (``torch_attention.py``), and so is linear attention
    (``torch_linear_attention.py``).

    SGLang's own CPU engine needs kernels for AMX; this one needs only torch. Scheduler, radix cache,
    overlap loop and HTTP server are the same as on a GPU.
    """

    _enum = PlatformEnum.OOT

    def apply_server_args_defaults(self, server_args: Any) -> None:
        if server_args.max_total_tokens is None:
            server_args.max_total_tokens = MAX_TOTAL_TOKENS
        if server_args.grammar_backend is None:
            # xgrammar's token masks are pinned for a GPU and applied by GPU kernels only.
            server_args.grammar_backend = "llguidance"
        model = server_args.get_model_config()
        architectures = model.hf_config.architectures or []
        if "GptOssForCausalLM" in architectures and server_args.moe_runner_backend == "auto":
            # SGLang would lay the experts out for the triton_kernels package, which needs a GPU.
            server_args.moe_runner_backend = "triton"
        linear = getattr(model.hf_text_config, "linear_num_key_heads", None) is not None
        if linear and not server_args.disable_radix_cache:
            # SGLang keeps states for its radix cache beside the overlap loop with GPU kernels only.
            server_args.disable_overlap_schedule = True
        if server_args.max_mamba_cache_size is None:
            server_args.max_mamba_cache_size = MAX_STATES
        # The fast one computes on a GPU.
        server_args.disable_fast_image_processor = True
        # The convolution's part of a state is kept in bfloat16 otherwise, and a cut prompt would differ.
        os.environ.setdefault("SGLANG_MAMBA_CONV_DTYPE", "float32")
        if server_args.enable_hierarchical_cache:
            # The others are GPU kernels.
            server_args.hicache_io_backend = "direct"
            server_args.hicache_mem_layout = "layer_first"
        if server_args.speculative_algorithm is not None:
            from layered_sglang.platforms.speculative import keep_overlap_schedule

            keep_overlap_schedule()
        if server_args.tp_size > 1:
            os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", share_cores(server_args.tp_size))
            # torch's wheels bring NCCL along even where no GPU is; SGLang uses it where it loads.
            os.environ.setdefault("SGLANG_NCCL_SO_PATH", "no-nccl-without-a-gpu")

    def init_backend(self) -> None:
        # SGLang compiles small functions at their first use. Without a GPU that costs a C++ compiler
        # and tens of seconds in the middle of serving, and gains nothing.
        import torch._dynamo

        torch._dynamo.config.disable = True

        from sglang.srt.layers.attention.attention_registry import register_attention_backend

        from layered_sglang.platforms.adapters import leave_adapters_unpinned
        from layered_sglang.platforms.host_cache import build_host_pools
        from layered_sglang.platforms.kv_pools import build_windowed_pools
        from layered_sglang.platforms.latent_prefix import choose_as_on_a_gpu
        from layered_sglang.platforms.speculative import replace_speculative_kernels
        from layered_sglang.platforms.torch_attention import TorchAttention
        from layered_sglang.platforms.torch_kernels import (
            replace_kernels_of_models,
            replace_triton_kernels,
        )
        from layered_sglang.platforms.torch_linear_attention import (
            replace_linear_attention_kernels,
        )

        register_attention_backend("torch_native")(TorchAttention)
        choose_as_on_a_gpu("torch_native")
        build_windowed_pools()
        build_host_pools()
        leave_adapters_unpinned()
        replace_triton_kernels()
        replace_linear_attention_kernels()
        replace_kernels_of_models()
        replace_speculative_kernels()

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_mla_kv_pool_cls(self) -> Any:
        from layered_sglang.platforms.kv_pools import latent_pool

        return latent_pool

    def get_paged_allocator_cls(self) -> Any:
        from layered_sglang.platforms.kv_pools import allocator

        return allocator

    def get_torch_profiler_activity_str(self) -> str:
        # For /start_profile, which asks every platform that is not SGLang's own.
        return "CPU"

    def get_torch_profiler_activity(self) -> Any:
        from torch.profiler import ProfilerActivity

        return ProfilerActivity.CPU

    def get_dispatch_key_name(self) -> str:
        return "native"

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False


def share_cores(ranks: int) -> str:
    """The machine's cores, shared out to ``ranks`` ranks in SGLang's notation, ``0-3|4-7``.

    SGLang's own default wants a NUMA node for each rank.
    """
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // ranks)
    firsts = [cores[(rank * each) % len(cores)] for rank in range(ranks)]
    return "|".join(f"{first}-{first + each - 1}" if each > 1 else f"{first}" for first in firsts)
