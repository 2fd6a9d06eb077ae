"""Expert plan: the compiled operator against its PyTorch reference and SGLang's own kernel.

Every result is checked before it is timed. SGLang's moe_align_block_size (sgl_kernel, timed where
it is installed) does less: it pads and sorts the pairs, in no fixed order, but gives no inverse.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Callable

import torch
from graph_timing import time_in_graph
from layered_sglang.moe import expert_plan, native_status
from layered_sglang.moe.reference import expert_plan_reference

COLUMNS = (
    "tokens", "experts", "topk", "align", "implementation",
    "us", "us_p10", "us_p90", "gb_per_s", "ratio",
)  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tokens", type=int, nargs="+", default=[1, 16, 64, 512, 1024, 4096, 8192, 16384])
    add("--experts", type=int, nargs="+", default=[128])
    add("--topk", type=int, default=8)
    add("--align", type=int, nargs="+", default=[16])
    add("--routing", choices=("uniform", "skewed"), default="uniform")
    add("--repeats", type=int, default=50, help="timed graph replays of 20 calls each")
    add("--csv", metavar="PATH", help="write the table there, too")
    return parser.parse_args()


def make_topk_ids(routing: str, tokens: int, top_k: int, num_experts: int) -> torch.Tensor:
    """int32 [tokens, top_k] on the GPU; skewed: expert probabilities fall steeply."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    fraction = torch.rand(tokens, top_k, generator=generator, device="cuda")
    if routing == "skewed":
        fraction = fraction**4
    return (fraction * num_experts).int().clamp(max=num_experts - 1)


def sgl_kernel_plan(
    topk_ids: torch.Tensor, num_experts: int, block_size: int
) -> Callable[[], torch.Tensor] | None:
    """A call of sgl_kernel's moe_align_block_size, with buffers as SGLang allocates them."""
    try:
        from sgl_kernel import moe_align_block_size
    except ImportError:
        return None

    buckets = num_experts + 1  # SGLang's convention: one for the ids of other ranks' experts
    rows = topk_ids.numel() + buckets * (block_size - 1)

    def empty(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device="cuda")

    sorted_ids, expert_ids = empty(rows), empty(-(-rows // block_size))
    total, cumsum = empty(1), empty(buckets + 1)

    def call() -> torch.Tensor:
        moe_align_block_size(
            topk_ids, buckets, block_size, sorted_ids, expert_ids, total, cumsum, True
        )
        return total

    return call


def bench(tokens: int, num_experts: int, align: int, args: argparse.Namespace) -> list[dict]:
    """The table's rows for one size."""
    topk_ids = make_topk_ids(args.routing, tokens, args.topk, num_experts)
    expected = expert_plan_reference(topk_ids.cpu(), num_experts, align)
    result = expert_plan(topk_ids, num_experts, row_alignment=align)
    for name, got, want in zip(result._fields, result, expected, strict=True):
        if not torch.equal(got.cpu(), want):
            sys.exit(f"tokens {tokens}, experts {num_experts}, align {align}: {name} is wrong")

    calls: dict[str, Callable[[], object]] = {
        "layered": lambda: expert_plan(topk_ids, num_experts, row_alignment=align),
        "torch reference": lambda: expert_plan_reference(topk_ids, num_experts, align),
    }
    peer = sgl_kernel_plan(topk_ids, num_experts, align)
    if peer is not None:
        if peer().item() != expected.expert_offsets[-1].item():
            sys.exit("sgl_kernel's padded row total differs: its interface has changed")
        calls["sgl_kernel"] = peer

    # What must move at least: the ids in, the four outputs out.
    moved = 4 * (topk_ids.numel() + sum(field.numel() for field in expected))
    rows = []
    for name, call in calls.items():
        spread = time_in_graph(call, args.repeats)
        values = (tokens, num_experts, args.topk, align, name, *spread)
        ratio = spread.median / rows[0]["us"] if rows else 1.0
        rows.append(dict(zip(COLUMNS, (*values, moved / spread.median * 1e-3, ratio), strict=True)))
    return rows


def main() -> None:
    args = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("needs a CUDA GPU; there is none")
    if not native_status().cuda:
        sys.exit(f"no kernels to time: {native_status().reason}")

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.routing} routing")
    print(f"{'tokens':>7} {'experts':>7} {'topk':>4} {'align':>5}  {'implementation':<16}"
          f"{'us':>8}  {'(p10 ... p90)':<18}{'GB/s':>8}  ratio")  # fmt: skip
    table = []
    for experts, align, tokens in itertools.product(args.experts, args.align, args.tokens):
        for row in bench(tokens, experts, align, args):
            table.append(row)
            spread = f"({row['us_p10']:.2f} ... {row['us_p90']:.2f})"
            print(f"{tokens:>7} {experts:>7} {args.topk:>4} {align:>5}  "
                  f"{row['implementation']:<16}{row['us']:>8.2f}  {spread:<18}"
                  f"{row['gb_per_s']:>8.1f}  {row['ratio']:.2f}")  # fmt: skip
    print(f"repeat a row: {sys.argv[0]} --tokens N --experts E --align A --topk {args.topk} "
          f"--routing {args.routing} --repeats {args.repeats}")  # fmt: skip
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
