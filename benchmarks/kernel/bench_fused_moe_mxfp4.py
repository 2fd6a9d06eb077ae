"""A whole MoE layer with MXFP4 weights: fused_experts_mxfp4 against SGLang's triton_kernels runner.

Defaults are gpt-oss-20b's experts. Results are checked before they are timed; calls are captured in
CUDA graphs that rotate between weight copies and routings, and the implementations take turns. The
floor is what this GPU needs to read the chosen experts' weights once, or for the products, at the
rates of a device copy and a square bf16 matrix product that are measured first.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable

import torch
from bench_fused_moe import COLUMNS, ROUTINGS, calls_for, check, clocks, write_csv
from graph_timing import time_in_graph, time_interleaved
from layered_sglang.moe import native_status
from layered_sglang.moe.fused_experts_mxfp4_layout import MXFP4_PATHS
from layered_sglang.moe.reference_mxfp4 import fused_experts_mxfp4_fp32
from mxfp4_layers import (
    Mxfp4Weights,
    TritonWeights,
    layered_mxfp4_call,
    make_layer,
    make_routing,
    triton_mxfp4_call,
)

OURS = "layered mxfp4"
GEMV_TOKENS = 8  # of more it is not timed
# The runner alone, with its routing done beforehand; and with it, which does what our plan does, too.
TRITON, ROUTED = "triton_kernels", "... and routing"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tokens", type=int, nargs="+", default=[1, 8, 32, 64, 128, 512, 2048, 8192])
    add("--experts", type=int, default=32)
    add("--topk", type=int, default=4)
    add("--hidden", type=int, default=2880)
    add("--inter", type=int, default=2880, help="of one tensor-parallel rank, a multiple of 64")
    add("--paths", nargs="+", default=["auto"], choices=MXFP4_PATHS)
    add("--without-peers", action="store_true", help="our layer only")
    add("--copies", type=int, default=2, help="weight copies to rotate between")
    add("--repeats", type=int, default=10)
    add("--seconds", type=float, default=float("inf"), help="start no further size after that")
    add("--csv", metavar="PATH", help="write the table there, too")
    args = parser.parse_args()
    for name in ("hidden", "inter"):
        if getattr(args, name) < 1 or getattr(args, name) % 64:
            parser.error(f"--{name}: expected a multiple of 64, got {getattr(args, name)}")
    if min(args.tokens) < 1:
        parser.error(f"--tokens: expected at least 1, got {min(args.tokens)}")
    return args


def rates() -> tuple[float, float]:
    """Bytes and floating-point operations a second of this GPU."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    # Not copy_, which a graph gives to the copy engine.
    copy_us = time_in_graph(lambda: torch.neg(source, out=target), 10, 3).median
    a = torch.randn(8192, 8192, device="cuda").bfloat16()
    product_us = time_in_graph(lambda: a @ a, 10, 3).median
    return 8e6 * source.numel() / copy_us, 2e6 * 8192**3 / product_us


def bench(
    args: argparse.Namespace,
    weights: list[tuple[Mxfp4Weights, TritonWeights | None]],
    tokens: int,
) -> list[dict]:
    """The table's rows for one number of tokens."""
    x = torch.randn(tokens, args.hidden, device="cuda").bfloat16()
    routings = [make_routing(tokens, args.experts, args.topk, seed) for seed in range(ROUTINGS)]
    sizes = (tokens, args.topk, args.experts, args.hidden, args.inter)
    calls: dict[str, tuple[Callable, int]] = {
        OURS if path == "auto" else f"{OURS} {path}": (layered_mxfp4_call(*sizes, path), 0)
        for path in args.paths
        if path != "gemv" or tokens <= GEMV_TOKENS
    }
    if not args.without_peers:
        calls[TRITON] = (triton_mxfp4_call(args.topk, route=False), 1)
        calls[ROUTED] = (triton_mxfp4_call(args.topk, route=True), 1)

    expected = fused_experts_mxfp4_fp32(x, *weights[0][0], *routings[0][1:])
    used_experts = sum(r.ids.unique().numel() for r in routings) / ROUTINGS
    layer = weights[0][0]
    moved = used_experts * sum(t[0].numel() * t.itemsize for t in layer) + 4 * x.numel()
    flops = 6 * tokens * args.topk * args.inter * args.hidden
    floor_us = 1e6 * max(moved / args.rates[0], flops / args.rates[1])
    graphs = {}
    for name, (call, kind) in calls.items():
        check(name, call(x, weights[0][kind], routings[0]), expected)
        rotation = zip(itertools.cycle(weights), itertools.cycle(routings), strict=False)
        graphs[name] = [
            lambda call=call, w=w[kind], r=r: call(x, w, r)
            for w, r in itertools.islice(rotation, calls_for(floor_us))
        ]
    rows: list[dict] = []
    for name, us in time_interleaved(graphs, args.repeats).items():
        ratio = us.median / rows[0]["ms"] * 1e-3 if rows else 1.0
        per_second = (flops / us.median * 1e-6, moved / us.median * 1e-3, us.median / floor_us)
        shape = (tokens, args.experts, args.topk, args.hidden, args.inter)
        values = (*shape, name, *(value * 1e-3 for value in us), *per_second, ratio)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA GPU; there is none")
    if not native_status().cuda:
        sys.exit(f"no kernels to time: {native_status().reason}")
    deadline = time.monotonic() + args.seconds
    args.rates = rates()
    print(f"{clocks()}; torch {torch.__version__}; E {args.experts} top {args.topk} hidden "
          f"{args.hidden} inter {args.inter}; copy {args.rates[0] * 1e-12:.2f} TB/s, product "
          f"{args.rates[1] * 1e-12:.0f} TFLOP/s")  # fmt: skip
    print(f"{'tokens':>7}  {'implementation':<18}{'ms':>8}  {'(p10 ... p90)':<20}"
          f"{'TFLOP/s':>8}{'GB/s':>8}{'floor x':>9}  ratio")  # fmt: skip
    layer = (args.experts, args.hidden, args.inter)
    weights = [
        make_layer(*layer, seed, with_peer=not args.without_peers) for seed in range(args.copies)
    ]
    table: list[dict] = []
    for tokens in args.tokens:
        if time.monotonic() > deadline:
            print(f"{tokens:>7}  and more: no time left")
            break
        try:
            rows = bench(args, weights, tokens)
        except (RuntimeError, ValueError) as error:
            print(f"{tokens:>7}  failed: {str(error).splitlines()[0]}", flush=True)
            continue
        table += rows
        for row in rows:
            spread = f"({row['ms_p10']:.4f} ... {row['ms_p90']:.4f})"
            print(f"{tokens:>7}  {row['implementation']:<18}{row['ms']:>8.4f}  {spread:<20}"
                  f"{row['tflops']:>8.1f}{row['gb_per_s']:>8.0f}{row['over_floor']:>9.2f}"
                  f"  {row['ratio']:.2f}", flush=True)  # fmt: skip
        if args.csv:
            write_csv(args.csv, table)  # each time: a run that is cut off leaves what it has
    print(f"after: {clocks()}")


if __name__ == "__main__":
    main()
