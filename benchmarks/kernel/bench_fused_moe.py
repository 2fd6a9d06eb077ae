"""A whole MoE layer: fused_experts against SGLang's Triton kernels and torch._grouped_mm.

Every result is checked before it is timed. Calls are captured in CUDA graphs that rotate between
weight copies (so weights come from memory, not from the L2) and routings, and the implementations
take turns. SGLang's kernels run where SGLang is installed, with its tuned configuration for this
GPU if it has one. --suite times published models' shapes and their tensor-parallel shards, and stops
after --seconds.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import subprocess
import sys
import time
import types
from collections.abc import Callable
from typing import NamedTuple

import torch
from expert_shapes import SHAPES, Shape
from graph_timing import time_interleaved
from layered_sglang.moe import (
    expert_plan,
    fused_experts_workspace_bytes,
    native_status,
)
from layered_sglang.moe.fused_experts_layout import PATHS
from layered_sglang.moe.reference import fused_experts_fp32

COLUMNS = (
    "tokens", "experts", "topk", "hidden", "inter", "implementation",
    "ms", "ms_p10", "ms_p90", "tflops", "gb_per_s", "over_floor", "ratio",
)  # fmt: skip
# Of an H200, measured: device copy and 8192^3 bf16 matrix product. The floor is made of them.
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12
MAX_RELATIVE_ERROR = 0.005
MAX_RELATIVE_ERROR_OF_PEERS = 0.02  # they round more intermediate results
CALLS_PER_GRAPH = 12  # of large layers: as many as take MAX_GRAPH_MS, but each routing once
MAX_GRAPH_MS = 20
ROUTINGS = 4
OURS = "layered"
MAX_WEIGHT_BYTES = 12e9  # of all copies; a layer of more is far larger than the L2 by itself


class Weights(NamedTuple):
    w13: torch.Tensor
    w2: torch.Tensor


class Routing(NamedTuple):
    weights: torch.Tensor
    ids: torch.Tensor


Call = Callable[[torch.Tensor, Weights, Routing], torch.Tensor]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tokens", type=int, nargs="+",
        default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384])  # fmt: skip
    add("--experts", type=int, default=128)
    add("--topk", type=int, default=8)
    add("--hidden", type=int, default=2048)
    add("--inter", type=int, default=768, help="of one tensor-parallel rank")
    add("--routing", choices=("uniform", "skewed"), default="uniform")
    add("--paths", nargs="+", default=["auto"], choices=PATHS)
    add("--without-peers", action="store_true")
    add(
        "--suite",
        nargs="*",
        choices=tuple(SHAPES),
        metavar="NAME",
        help=f"in the place of sizes: {', '.join(SHAPES)}; without a name all of them",
    )
    add("--seconds", type=float, default=float("inf"), help="start no further size after that")
    add("--copies", type=int, default=3, help="weight copies to rotate between")
    add("--repeats", type=int, default=20, help="timed replays of a graph of 12 calls")
    add("--csv", metavar="PATH", help="write the table there, too")
    args = parser.parse_args()
    for name in ("experts", "topk", "hidden", "inter", "copies", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(args, name)}")
    if min(args.tokens) < 1:
        parser.error(f"--tokens: expected at least 1, got {min(args.tokens)}")
    if args.topk > args.experts:
        parser.error(f"--topk: expected at most --experts ({args.experts}), got {args.topk}")
    return args


def make_weights(args: argparse.Namespace, seed: int) -> Weights:
    """Normal weights, scaled so that the outputs are of order one."""
    generator = torch.Generator(device="cuda").manual_seed(seed)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        out = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        return out.normal_(0, scale, generator=generator)

    experts, hidden, inter = args.experts, args.hidden, args.inter
    w13 = normal(experts, 2 * inter, hidden, scale=2 * hidden**-0.5)
    return Weights(w13, normal(experts, hidden, inter, scale=inter**-0.5))


def make_routing(args: argparse.Namespace, tokens: int, seed: int) -> Routing:
    """Distinct experts for each token; skewed: their probabilities fall steeply."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    scores = torch.rand(tokens, args.experts, generator=generator, device="cuda")
    if args.routing == "skewed":
        scores = scores + torch.linspace(1, 0, args.experts, device="cuda")
    ids = scores.topk(args.topk, dim=1).indices.int()
    logits = torch.randn(ids.shape, generator=generator, device="cuda")
    return Routing(logits.softmax(1), ids)


def layered_call(args: argparse.Namespace, tokens: int, path: str) -> Call:
    size = fused_experts_workspace_bytes(tokens, args.topk, args.experts, args.hidden, args.inter)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    out = torch.empty(tokens, args.hidden, dtype=torch.bfloat16, device="cuda")

    def call(x: torch.Tensor, weights: Weights, routing: Routing) -> torch.Tensor:
        torch.ops.layered_sglang.fused_experts_out(
            x, weights.w13, weights.w2, *routing, out, workspace, "silu", path
        )
        return out

    return call


def triton_call() -> Call | None:
    """SGLang's fused MoE as its runner calls it, or None where SGLang is not installed."""
    try:
        from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import ServerArgs
    except ImportError as error:
        print(f"SGLang's Triton kernels are not timed: {error}", file=sys.stderr)
        return None
    publish(ServerArgs(model_path="dummy", device="cuda"), role="test")
    # One process without a process group: nothing is allocated for a collective.
    fused_moe.get_tp_group = lambda: types.SimpleNamespace(world_size=1)
    fused_moe.is_allocation_symmetric = lambda: False
    return lambda x, weights, routing: fused_moe.fused_experts_impl(
        x, weights.w13, weights.w2, *routing, filter_expert=False
    )


def grouped_mm_call(args: argparse.Namespace) -> Call:
    """torch._grouped_mm twice, with gather, SwiGLU and combine as separate operators."""

    def call(x: torch.Tensor, weights: Weights, routing: Routing) -> torch.Tensor:
        plan = expert_plan(routing.ids, args.experts)
        ends = plan.expert_offsets[1:]
        rows = x[plan.sorted_rows // args.topk]
        gate, up = torch._grouped_mm(rows, weights.w13.transpose(1, 2), ends).chunk(2, dim=1)
        neurons = torch.nn.functional.silu(gate) * up
        rows = torch._grouped_mm(neurons, weights.w2.transpose(1, 2), ends)
        return (rows[plan.inverse_rows] * routing.weights[..., None]).sum(1)

    return call


def check(name: str, result: torch.Tensor, expected: torch.Tensor) -> None:
    error = ((result.float() - expected).norm() / expected.norm()).item()
    limit = MAX_RELATIVE_ERROR if name.startswith(OURS) else MAX_RELATIVE_ERROR_OF_PEERS
    if not error <= limit:
        sys.exit(f"{name}, {len(result)} tokens: relative error {error}, expected at most {limit}")


def calls_for(floor_us: float) -> int:
    return max(ROUTINGS, min(CALLS_PER_GRAPH, round(MAX_GRAPH_MS * 1e3 / floor_us)))


def bench(args: argparse.Namespace, weights: list[Weights], tokens: int) -> list[dict]:
    """The table's rows for one number of tokens."""
    x = torch.randn(tokens, args.hidden, device="cuda").bfloat16()
    routings = [make_routing(args, tokens, seed) for seed in range(ROUTINGS)]
    implementations: dict[str, Call] = {
        OURS if path == "auto" else f"{OURS} {path}": layered_call(args, tokens, path)
        for path in args.paths
    }
    if not args.without_peers:
        if args.triton is not None:
            implementations["sglang triton"] = args.triton
        implementations["torch._grouped_mm"] = grouped_mm_call(args)

    copy, routing = weights[0], routings[0]
    expected = fused_experts_fp32(x, copy.w13, copy.w2, *routing)
    used_experts = sum(r.ids.unique().numel() for r in routings) / ROUTINGS
    moved = 6 * used_experts * args.inter * args.hidden + 4 * x.numel()
    flops = 6 * tokens * args.topk * args.inter * args.hidden
    floor_us = 1e6 * max(moved / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND)
    graphs = {}
    for name, call in implementations.items():
        check(name, call(x, copy, routing), expected)
        arguments = zip(itertools.cycle(weights), itertools.cycle(routings), strict=False)
        graphs[name] = [
            lambda call=call, a=a, r=r: call(x, a, r)
            for a, r in itertools.islice(arguments, calls_for(floor_us))
        ]

    rows: list[dict] = []
    for name, us in time_interleaved(graphs, args.repeats).items():
        sizes = (tokens, args.experts, args.topk, args.hidden, args.inter)
        ratio = us.median / rows[0]["ms"] * 1e-3 if rows else 1.0
        rates = (flops / us.median * 1e-6, moved / us.median * 1e-3, us.median / floor_us)
        values = (*sizes, name, *(value * 1e-3 for value in us), *rates, ratio)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def clocks() -> str:
    query = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"clocks unknown: {error}"


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA GPU; there is none")
    if not native_status().cuda:
        sys.exit(f"no kernels to time: {native_status().reason}")

    args.triton = None if args.without_peers else triton_call()
    print(f"{clocks()}; torch {torch.__version__}; {args.routing} routing")
    deadline = time.monotonic() + args.seconds
    table: list[dict] = []
    for name, shape in chosen_shapes(args).items():
        vars(args).update(shape._asdict())
        if time.monotonic() < deadline:
            bench_shape(args, name, table, deadline)
    print(f"after: {clocks()}")
    if args.csv:
        write_csv(args.csv, table)


def chosen_shapes(args: argparse.Namespace) -> dict[str, Shape]:
    if args.suite is None:
        sizes = Shape(args.experts, args.topk, args.hidden, args.inter, tuple(args.tokens))
        return {"layer": sizes}
    return {name: SHAPES[name] for name in args.suite or SHAPES}


def bench_shape(args: argparse.Namespace, name: str, table: list[dict], deadline: float) -> None:
    """Times one shape's sizes; a size that fails is reported, and the next one goes on."""
    sizes = (
        f"--experts {args.experts} --topk {args.topk} --hidden {args.hidden} --inter {args.inter}"
    )
    print(f"{name}: {sizes} --routing {args.routing} --copies {args.copies} "
          f"--repeats {args.repeats}")  # fmt: skip
    print(f"{'tokens':>7}  {'implementation':<18}{'ms':>8}  {'(p10 ... p90)':<20}"
          f"{'TFLOP/s':>8}{'GB/s':>8}{'floor x':>9}  ratio")  # fmt: skip
    weight_bytes = 6 * args.experts * args.inter * args.hidden
    copies = max(1, min(args.copies, int(MAX_WEIGHT_BYTES // weight_bytes)))
    weights = [make_weights(args, seed) for seed in range(copies)]
    for tokens in args.tokens:
        if time.monotonic() > deadline:
            print(f"{tokens:>7}  and more: no time left")
            break
        try:
            rows = bench(args, weights, tokens)
        except (RuntimeError, ValueError) as error:
            print(f"{tokens:>7}  failed: {str(error).splitlines()[0]}", flush=True)
            continue
        for row in rows:
            table.append(row)
            spread = f"({row['ms_p10']:.4f} ... {row['ms_p90']:.4f})"
            print(f"{tokens:>7}  {row['implementation']:<18}{row['ms']:>8.4f}  {spread:<20}"
                  f"{row['tflops']:>8.1f}{row['gb_per_s']:>8.0f}{row['over_floor']:>9.2f}"
                  f"  {row['ratio']:.2f}", flush=True)  # fmt: skip
        if args.csv:
            write_csv(args.csv, table)  # each time: a run that is cut off leaves what it has
    del weights
    torch.cuda.empty_cache()


def write_csv(path: str, table: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
