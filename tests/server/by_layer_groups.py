"""``python -m by_layer_groups MODEL LOGITS``: a model in this process, without a server. Prompts go
through layer groups beside decode rows, and their logits are those of SGLang's own forward pass.

What the scheduler does is the same for every model and tested elsewhere; what differs by model is how its
layers are called and what they hand on. A model costs seconds here.
"""

from __future__ import annotations

import os
import random
import sys
from array import array
from typing import Any

#: Tokens of the request that decodes, and of the prompts beside it. Each is cut once.
STREAM, PROMPTS, CUTS = 30, (210, 37), (150, 5)
#: Layer groups of the prompts' first parts and of the rest; decode goes on beside all but the last.
FIRST_PARTS, THE_REST = (1, 3, 8), (2, 5, 8)
STEPS = 4
TOLERANCE = 2e-4  # between logits, in float32


def prompts() -> list[list[int]]:
    """That of the request that decodes, and those beside it."""
    rng = random.Random(11)
    return [[rng.randrange(256) for _ in range(n)] for n in (STREAM, *PROMPTS)]


def main(folder: str, logits: str) -> None:
    """Writes SGLang's first logits of ``PROMPTS`` to the file ``logits``.

    Raises:
        AssertionError: it says what differs.
    """
    import torch

    runner = load(folder)
    stream, *beside = prompts()
    wanted_stream = whole(runner, [stream], 1 + len(FIRST_PARTS) + len(THE_REST))
    wanted = whole(runner, beside, STEPS)
    torch.save(wanted[0], logits)
    got_stream, got = layered(runner, stream, beside)
    compare("the decode rows beside layer groups", got_stream, wanted_stream)
    compare("the prompts, and what they decode to", got, wanted)


def load(folder: str) -> Any:
    """SGLang's model runner as the layered launcher has it, for the model in ``folder``."""
    from layered_sglang.hooks.model_runner import LayeredModelRunner
    from layered_sglang.launch_server import LAUNCHER_ENV, _parse
    from layered_sglang.local_server import free_port

    os.environ[LAUNCHER_ENV] = "1"
    flags = ["--dtype", "float32", "--max-total-tokens", "2048", "--disable-radix-cache"]
    args = _parse(["--model-path", folder, "--skip-server-warmup", *flags])

    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed.parallel_state_wrapper import ParallelState
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.runtime_context import publish

    publish(args, role="scheduler")
    initialize_moe_config(args)
    runner = LayeredModelRunner(
        model_config=ModelConfig.from_server_args(args),
        mem_fraction_static=args.mem_fraction_static,
        gpu_id=0,
        ps=ParallelState.trivial(),
        nccl_port=free_port(),
        server_args=args,
    )
    runner.alloc_memory_pool()
    runner.init_attention_backends()
    runner.init_cuda_graphs()
    return runner


class Requests:
    """Some requests and their batch, without a scheduler. Cleared pools forget all."""

    def __init__(self, runner: Any, prompts: list[list[int]]) -> None:
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        self._runner = runner
        self._params = SamplingParams(temperature=0, max_new_tokens=64)
        self._reqs = [Req(str(i), "", array("q", p), self._params) for i, p in enumerate(prompts)]
        for req in self._reqs:
            req.full_untruncated_fill_ids = req.origin_input_ids
            req.logprob_start_len = -1

    def prompts(self, ends: tuple[int, ...] | None = None) -> Any:
        """The forward batch of what of the prompts was not yet computed, up to ``ends``."""
        from sglang.benchmark.one_batch import TreeCacheNamespace
        from sglang.srt.managers.schedule_batch import ScheduleBatch
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        runner = self._runner
        for i, req in enumerate(self._reqs):
            if req.req_pool_idx is not None:
                done = req.extend_range.end
                req.prefix_indices = runner.req_to_token_pool.req_to_token[req.req_pool_idx, :done]
                req.prefix_indices = req.prefix_indices.long()
            req.set_extend_range(
                len(req.prefix_indices), len(req.origin_input_ids) if ends is None else ends[i]
            )
        self._batch = ScheduleBatch.init_new(
            reqs=self._reqs,
            req_to_token_pool=runner.req_to_token_pool,
            token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
            tree_cache=TreeCacheNamespace(
                page_size=1,
                device=runner.device,
                token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
            ),
            model_config=runner.model_config,
            enable_overlap=False,
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )
        self._batch.prepare_for_extend()
        self._batch.input_ids = self._batch.prefill_input_ids_cpu.to(runner.device)
        return self._rows()

    def step(self, logits: Any) -> Any:
        """The forward batch of the tokens that ``logits`` are greatest for."""
        self._batch.input_ids = logits.argmax(-1)
        self._batch.prepare_for_decode()
        return self._rows()

    def _rows(self) -> Any:
        from sglang.srt.model_executor.forward_batch_info import ForwardBatch

        return ForwardBatch.init_new(
            self._batch, self._runner, return_hidden_states_before_norm=False
        )


def forward(runner: Any, rows: Any) -> Any:
    return runner.forward(rows).logits_output.next_token_logits


def whole(runner: Any, prompts: list[list[int]], count: int) -> list[Any]:
    """``count`` logits of each prompt, by SGLang's own passes."""
    clear(runner)
    requests = Requests(runner, prompts)
    logits = [forward(runner, requests.prompts())]
    while len(logits) < count:
        logits.append(forward(runner, requests.step(logits[-1])))
    return logits


def layered(
    runner: Any, stream: list[int], prompts: list[list[int]]
) -> tuple[list[Any], list[Any]]:
    """The same of ``stream`` and of ``prompts``, whose layers are run group by group."""
    from layered_sglang.executor.cohort_state import CohortState
    from layered_sglang.scheduling import LayerGroup

    clear(runner)
    decoding, cohort = Requests(runner, [stream]), Requests(runner, prompts)
    beside = [forward(runner, decoding.prompts())]
    for ends, borders in ((CUTS, FIRST_PARTS), (None, THE_REST)):
        state, start = CohortState(cohort.prompts(ends)), 0
        runner._maybe_execute_deferred_mamba_cow_and_clear(state.forward_batch)
        for end in borders:
            alone = ends is None and end == borders[-1]
            decode = None if alone else decoding.step(beside[-1])
            out = runner.layer_groups.run(decode, state, LayerGroup(start, end), lambda: None)
            start = end
            if decode is not None:
                beside.append(out.decode.next_token_logits)
    logits = [out.cohort.next_token_logits]
    beside.append(forward(runner, decoding.step(beside[-1])))
    while len(logits) < STEPS:
        logits.append(forward(runner, cohort.step(logits[-1])))
    return beside, logits


def clear(runner: Any) -> None:
    runner.req_to_token_pool.clear()
    runner.token_to_kv_pool_allocator.clear()


def compare(what: str, got: list[Any], want: list[Any]) -> None:
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape and bool(b.isfinite().all()) and b.std() > 0.1
        apart = (a - b).abs().max().item()
        assert apart < TOLERANCE, f"{what}: logits {i} are {apart:.1e} apart"
        print(f"{what}: logits {i} are {apart:.1e} apart, spread {b.std().item():.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
