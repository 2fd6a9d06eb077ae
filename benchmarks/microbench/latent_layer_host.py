"""Host time of a latent-attention layer: SGLang's own for a prompt, and the active layer group's.

One process, no server: SGLang's model runner with random weights, one prompt and a few requests that
decode. Each way passes all layers; what is measured is how long the host takes to launch one layer, and
how many operators and kernels it launches. Without a GPU a tiny model shows the operators; its times are
those of computing them.

  python benchmarks/microbench/latent_layer_host.py --tokens 512 --decode 8
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("SGLANG_PLATFORM", "layered_sglang_cpu")

from layered_sglang.executor.architectures import architecture_of
from layered_sglang.executor.cohort_state import CohortState
from layered_sglang.executor.iteration import LayerGroupExecutor
from layered_sglang.model_zoo import find_preset, write_model
from layered_sglang.model_zoo.presets import Preset
from layered_sglang.scheduling import LayerGroup

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

FLAGS = "--load-format dummy --skip-tokenizer-init --disable-radix-cache --max-total-tokens 40000"
GPU_FLAGS = """--dtype bfloat16 --attention-backend fa3 --disable-prefill-cuda-graph
    --mem-fraction-static 0.5 --cuda-graph-max-bs-decode 16"""
CPU_FLAGS = "--device cpu --dtype float32"
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", help="default: deepseek-v2-lite on a GPU, tiny-deepseek-v2 without one")
    add("--layers", type=int, default=6, help="of the model, on a GPU")
    add("--tokens", type=int, nargs="+", default=[64], help="of the prompt; one line each")
    add("--decode", type=int, default=4, help="requests that decode beside it")
    add("--graph-tokens", type=int, default=0, help="layer graphs of up to this many rows; 0: none")
    add("--repeats", type=int, default=30)
    return parser.parse_args()


def start(args: argparse.Namespace) -> Any:
    """SGLang's model runner, its own decode graphs captured where there is a GPU."""
    from sglang.benchmark.one_batch import load_model
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import PortArgs, prepare_server_args

    load_plugins()
    gpu = torch.cuda.is_available()
    preset = find_preset(args.preset or ("deepseek-v2-lite" if gpu else "tiny-deepseek-v2"))
    if gpu:
        config = {**preset.config, "num_hidden_layers": args.layers}
        preset = Preset(preset.name, "", config, False)
    folder = Path(tempfile.mkdtemp()) / "model"
    write_model(preset, folder)
    flags = [*FLAGS.split(), *(GPU_FLAGS if gpu else CPU_FLAGS).split()]
    server_args = prepare_server_args(["--model-path", str(folder), *flags])
    from sglang.benchmark import one_batch
    from sglang.srt.entrypoints.engine import _set_envs_and_config

    _set_envs_and_config(server_args)
    one_batch.get_tokenizer = lambda *_args, **_kwargs: None
    runner, _ = load_model(server_args, PortArgs.init_new(server_args), 0, 0)
    return runner.torch_runner


def batch_of(runner: Any, lengths: list[int]) -> Any:
    """A schedule batch of prompts of these lengths, ready to be computed."""
    from sglang.benchmark.one_batch import TreeCacheNamespace
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.sampling.sampling_params import SamplingParams
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    reqs = []
    for i, length in enumerate(lengths):
        tokens = array("q", [(7 * j + i) % 200 for j in range(length)])
        req = Req(f"{length}-{i}", "", tokens, SamplingParams(temperature=0, max_new_tokens=64))
        req.full_untruncated_fill_ids = req.origin_input_ids
        req.logprob_start_len = -1
        req.set_extend_range(0, length)
        reqs.append(req)
    tree = TreeCacheNamespace(
        page_size=1,
        device=runner.device,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
    )
    batch = ScheduleBatch.init_new(
        reqs=reqs,
        req_to_token_pool=runner.req_to_token_pool,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        tree_cache=tree,
        model_config=runner.model_config,
        enable_overlap=False,
        spec_algorithm=SpeculativeAlgorithm.NONE,
    )
    batch.prepare_for_extend()
    if batch.input_ids is None:
        batch.input_ids = batch.prefill_input_ids_cpu.to(batch.device)
        batch.prefill_input_ids_cpu = None
    return batch


def rows_of(runner: Any, batch: Any) -> ForwardBatch:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    return ForwardBatch.init_new(batch, runner, return_hidden_states_before_norm=False)


def decoding(runner: Any, count: int) -> ForwardBatch:
    """Rows of ``count`` requests of 32 tokens that decode."""
    batch = batch_of(runner, [32] * count)
    with torch.no_grad():
        runner.forward(rows_of(runner, batch))
    batch.input_ids = torch.full((count,), 5, dtype=torch.int64, device=batch.device)
    batch.prepare_for_decode()
    return rows_of(runner, batch)


# --- measuring ----------------------------------------------------------------------------------------


class Ways:
    """All layers for the same rows, each way; attention is planned beforehand."""

    def __init__(self, executor: LayerGroupExecutor, decode: ForwardBatch) -> None:
        self.executor, self.decode = executor, decode
        self.layers = LayerGroup(0, executor.model.num_layers)

    def of(self, cohort: ForwardBatch) -> dict[str, Callable[[], Any]]:
        executor = self.executor
        executor.attention.cohort.init_forward_metadata(cohort)
        executor._latent.plan(cohort)
        passing = executor._decode_graphs or executor._eager_decode
        rows = passing.begin(self.decode)
        replays = executor._graphs_for(cohort, rows) is not None
        name = "active layer group, " + ("graphs" if replays else "launched")
        ours = partial(executor._run_active, CohortState(cohort), rows, None, self.layers)
        alone = partial(executor.model.run, self.layers, cohort, None, executor.attention.cohort)
        return {"SGLang's, the prompt alone": alone, name: ours}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def times(run: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Milliseconds until the host is through with ``run``, median and least, and until all is computed;
    the GPU is idle when it begins."""
    host, whole = [], []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        run()
        host.append(time.perf_counter() - begin)
        synchronize()
        whole.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(host), 1e3 * min(host), 1e3 * statistics.median(whole)


def launched(run: Callable[[], Any]) -> tuple[int, int]:
    """Operators that Python called; launches of kernels, copies and graphs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
        synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CPU]
    outer = [e for e in events if e.cpu_parent is None and not e.name.startswith("cu")]
    return len(outer), sum(e.name.startswith(LAUNCHES) for e in events)


@torch.no_grad()
def measure(ways: Ways, runner: Any, args: argparse.Namespace) -> None:
    layers = ways.executor.model.num_layers
    for tokens in args.tokens:
        cohort = rows_of(runner, batch_of(runner, [tokens]))
        for name, run in ways.of(cohort).items():
            for _ in range(3):
                run()
            figures = [ms / layers for ms in times(run, args.repeats)]
            operators, launches = (number / layers for number in launched(run))
            print(
                f"{tokens:>7}  {name:<30}"
                + "".join(f"{ms:>9.3f}" for ms in figures)
                + f"{operators:>11.1f}{launches:>10.1f}",
                flush=True,
            )


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    runner = start(args)
    architecture = architecture_of(runner.model_config.hf_config.architectures)
    executor = LayerGroupExecutor(runner, architecture)
    print(
        f"{args.decode} requests decode; ms, operators and launches a layer, {args.repeats} repeats"
    )
    print(
        f"{'tokens':>7}  {'way':<30}{'host':>9}{'least':>9}{'done':>9}{'operators':>11}{'launches':>10}"
    )
    measure(Ways(executor, decoding(runner, args.decode)), runner, args)
    if args.graph_tokens:
        print(executor.capture_graphs(runner, args.graph_tokens))
        measure(Ways(executor, decoding(runner, args.decode)), runner, args)


if __name__ == "__main__":
    main()
