"""A whole MoE layer in block-scaled fp8: fused_experts_fp8 against SGLang's Triton kernels in fp8.

The bf16 layer of the same sizes is timed beside them, for its ratio. Results are checked before they
are timed, and calls are captured and rotated as in bench_fused_moe.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable

import torch
from bench_fused_moe import (
    BYTES_PER_SECOND,
    COLUMNS,
    FLOPS_PER_SECOND,
    ROUTINGS,
    Weights,
    calls_for,
    check,
    clocks,
    layered_call,
    make_routing,
    make_weights,
    triton_call,
    write_csv,
)
from fp8_layers import (
    Fp8Weights,
    dequantise_weights,
    layered_fp8_call,
    quantise_weights,
    triton_fp8_call,
)
from graph_timing import time_interleaved
from layered_sglang.moe import native_status
from layered_sglang.moe.reference import fused_experts_fp8_fp32, fused_experts_fp32

OURS, BF16, TRITON = "layered fp8", "layered bf16", "sglang triton fp8"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tokens", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 2048, 4096, 8192, 16384])
    add("--experts", type=int, default=128)
    add("--topk", type=int, default=8)
    add("--hidden", type=int, default=2048)
    add("--inter", type=int, default=768, help="of one tensor-parallel rank; a multiple of 128")
    add("--routing", choices=("uniform", "skewed"), default="uniform")
    add("--without-peers", action="store_true", help="our fp8 layer only")
    add("--copies", type=int, default=3, help="weight copies to rotate between")
    add("--repeats", type=int, default=20)
    add("--seconds", type=float, default=float("inf"), help="start no further size after that")
    add("--csv", metavar="PATH", help="write the table there, too")
    args = parser.parse_args()
    for name in ("hidden", "inter"):
        if getattr(args, name) < 1 or getattr(args, name) % 128:
            parser.error(f"--{name}: expected a multiple of 128, got {getattr(args, name)}")
    if min(args.tokens) < 1:
        parser.error(f"--tokens: expected at least 1, got {min(args.tokens)}")
    return args


def sglang_module() -> object | None:
    """SGLang's module of the fused MoE, set up for one process; None where it is not installed."""
    if triton_call() is None:
        return None
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe

    return fused_moe


def bench(
    args: argparse.Namespace,
    weights: list[tuple[Fp8Weights, Weights]],
    tokens: int,
    fused_moe: object | None,
) -> list[dict]:
    """The table's rows for one number of tokens."""
    x = torch.randn(tokens, args.hidden, device="cuda").bfloat16()
    routings = [make_routing(args, tokens, seed) for seed in range(ROUTINGS)]
    sizes = (tokens, args.topk, args.experts, args.hidden, args.inter)
    calls: dict[str, tuple[Callable, int]] = {OURS: (layered_fp8_call(*sizes), 0)}
    if not args.without_peers:
        calls[BF16] = (layered_call(args, tokens, "auto"), 1)
        if fused_moe is not None:
            calls[TRITON] = (triton_fp8_call(fused_moe), 0)

    expected = (
        fused_experts_fp8_fp32(x, *weights[0][0], *routings[0]),
        fused_experts_fp32(x, *weights[0][1], *routings[0]),
    )
    used_experts = sum(r.ids.unique().numel() for r in routings) / ROUTINGS
    parameters = 3 * used_experts * args.inter * args.hidden
    flops = 6 * tokens * args.topk * args.inter * args.hidden
    graphs, floors = {}, {}
    for name, (call, kind) in calls.items():
        check(name, call(x, weights[0][kind], routings[0]), expected[kind])
        moved = parameters * (1, 2)[kind] + 4 * x.numel()
        # fp8 products are taken to be twice as fast as the bf16 ones that were measured.
        rate = FLOPS_PER_SECOND * (2, 1)[kind]
        floors[name] = (moved, 1e6 * max(moved / BYTES_PER_SECOND, flops / rate))
        rotation = zip(itertools.cycle(weights), itertools.cycle(routings), strict=False)
        graphs[name] = [
            lambda call=call, w=w[kind], r=r: call(x, w, r)
            for w, r in itertools.islice(rotation, calls_for(floors[name][1]))
        ]
    rows: list[dict] = []
    for name, us in time_interleaved(graphs, args.repeats).items():
        moved, floor_us = floors[name]
        ratio = us.median / rows[0]["ms"] * 1e-3 if rows else 1.0
        rates = (flops / us.median * 1e-6, moved / us.median * 1e-3, us.median / floor_us)
        shape = (tokens, args.experts, args.topk, args.hidden, args.inter)
        values = (*shape, name, *(value * 1e-3 for value in us), *rates, ratio)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA GPU; there is none")
    if not native_status().cuda:
        sys.exit(f"no kernels to time: {native_status().reason}")
    fused_moe = None if args.without_peers else sglang_module()
    deadline = time.monotonic() + args.seconds
    print(f"{clocks()}; torch {torch.__version__}; {args.routing} routing; E {args.experts} "
          f"top {args.topk} hidden {args.hidden} inter {args.inter}")  # fmt: skip
    print(f"{'tokens':>7}  {'implementation':<18}{'ms':>8}  {'(p10 ... p90)':<20}"
          f"{'TFLOP/s':>8}{'GB/s':>8}{'floor x':>9}  ratio")  # fmt: skip
    weights = []
    for seed in range(args.copies):
        fp8 = quantise_weights(*make_weights(args, seed))
        weights.append((fp8, Weights(*dequantise_weights(fp8))))
    table: list[dict] = []
    for tokens in args.tokens:
        if time.monotonic() > deadline:
            print(f"{tokens:>7}  and more: no time left")
            break
        try:
            rows = bench(args, weights, tokens, fused_moe)
        except (RuntimeError, ValueError) as error:
            print(f"{tokens:>7}  failed: {str(error).splitlines()[0]}", flush=True)
            continue
        table += rows
        for row in rows:
            spread = f"({row['ms_p10']:.4f} ... {row['ms_p90']:.4f})"
            print(f"{tokens:>7}  {row['implementation']:<18}{row['ms']:>8.4f}  {spread:<20}"
                  f"{row['tflops']:>8.1f}{row['gb_per_s']:>8.0f}{row['over_floor']:>9.2f}"
                  f"  {row['ratio']:.2f}", flush=True)  # fmt: skip
    print(f"after: {clocks()}")
    if args.csv:
        write_csv(args.csv, table)


if __name__ == "__main__":
    main()
