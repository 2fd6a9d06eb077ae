"""Does a cohort's layer group beside decode, each on its own SMs, beat both in one batch?

One iteration's GPU work, from layers of Qwen3-30B-A3B's sizes (proxy_layers.py): decode through all
layers, and a cohort through as many layers as take about as long. Four ways to run it, as CUDA graphs,
which take turns:
  in turn     decode, then the cohort's layer group
  merged      decode through the other layers; in the layer group both in one batch (the default of
              layered prefill)
  streams     both at once on two streams of the whole GPU
  N + M SMs   both at once, decode on N SMs and the cohort on M, by green contexts
Prints a table of the time until both are done and the verdict: whether the best partitioning beats
merged by 5% or more. --json: the figures, default $OUT/overlapped_execution.json.

  python benchmarks/kernel/overlapped_execution.py --seconds 240
  python benchmarks/kernel/overlapped_execution.py --dry       tries it on a CPU; no figures
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from layered_sglang.executor.green_contexts import Lane, Partitioning, split_device
from layered_sglang.moe import filling_multiprocessors, native_status
from overlapped_table import Cell, print_cell, print_head, verdict
from proxy_layers import TINY, Model, Part, Sizes, flash_attention_3

WARM_UP = 2
MOST_ERROR = 0.1  # of outputs, relative: wrong rows give about 1
LONGEST_PROMPT = 8192


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=240, help="start no further combination after that")
    add("--decode", type=int, nargs="+", default=[32, 8, 128, 1], help="batches")
    add("--cohort", type=int, nargs="+", default=[2048, 8192, 512, 16384], help="tokens")
    add("--context", type=int, default=4096, help="tokens that each decode row attends to")
    add("--splits", type=int, nargs="+", default=[16, 32, 48, 64, 88], help="SMs of decode")
    add("--repeats", type=int, default=12)
    add("--copies", type=int, default=12, help="layers' weights in memory, 1.2 GB each")
    out = Path(os.environ.get("OUT", "."))
    add("--json", type=Path, default=out / "overlapped_execution.json")
    add(
        "--dry",
        action="store_true",
        help="tiny sizes on the CPU, no graphs: does it compute right?",
    )
    args = parser.parse_args()
    if min(args.decode + args.cohort + args.splits + [args.repeats, args.copies]) < 1:
        parser.error("sizes must be at least 1")
    if args.dry:
        args.decode, args.cohort, args.context, args.copies = [3], [8, 16], 16, 2
    return args


# --- one piece of work, captured ----------------------------------------------------------------------


@dataclass
class Work:
    """A graph, the lane it was captured for, and what it computes into."""

    lane: Lane
    replay: Callable[[], Any]
    out: dict[str, torch.Tensor] = field(default_factory=dict)


@contextmanager
def filling(model: Model, sms: int | None) -> Iterator[None]:
    """While work for a lane is captured, persistent kernels take its SMs for their number of blocks."""
    model.sms = sms
    try:
        with filling_multiprocessors(sms):
            yield
    finally:
        model.sms = None


def capture(model: Model, lane: Lane, run: Callable[[], dict[str, torch.Tensor]]) -> Work:
    with filling(model, lane.sms):
        lane.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(lane.stream):
            for _ in range(WARM_UP):
                run()
        lane.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=lane.stream):
            out = run()
    return Work(lane, graph.replay, out)


class Combination:
    """One decode batch and one cohort: the ways to run them."""

    def __init__(self, model: Model, decode: Part, cohort: Part, layers: int) -> None:
        self.model, self.decode, self.cohort = model, decode, cohort
        self.first = (model.sizes.layers - layers) // 2
        self.end = self.first + layers

    def run_decode(self) -> dict[str, torch.Tensor]:
        x = self.model.run(0, self.model.sizes.layers, [self.decode], self.decode.x)
        return {"decode": x, "logits": self.model.logits(x)}

    def run_cohort(self) -> dict[str, torch.Tensor]:
        return {"cohort": self.model.run(self.first, self.end, [self.cohort], self.cohort.x)}

    def run_in_turn(self) -> dict[str, torch.Tensor]:
        return {**self.run_decode(), **self.run_cohort()}

    def run_merged(self) -> dict[str, torch.Tensor]:
        x = self.model.run(0, self.first, [self.decode], self.decode.x)
        both = [self.cohort, self.decode]
        joined = self.model.run(self.first, self.end, both, torch.cat((self.cohort.x, x)))
        x = joined[self.cohort.rows :]
        x = self.model.run(self.end, self.model.sizes.layers, [self.decode], x)
        return {"decode": x, "logits": self.model.logits(x), "cohort": joined[: self.cohort.rows]}


def check(what: str, out: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in out.items():
        want = expected[name].float()
        error = ((tensor.float() - want).norm() / want.norm()).item()
        if not error <= MOST_ERROR:
            raise RuntimeError(f"{what}: {name} is wrong, relative error {error:.3g}")


# --- timing -------------------------------------------------------------------------------------------


def launch(works: list[Work]) -> tuple[float, list[float]]:
    """Run ``works`` side by side; milliseconds until all are done, and until each is."""
    main = torch.cuda.current_stream()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    ends = [torch.cuda.Event(enable_timing=True) for _ in works]
    start.record(main)
    for work, end in zip(works, ends, strict=True):
        work.lane.stream.wait_event(start)
        with torch.cuda.stream(work.lane.stream):
            work.replay()
            end.record(work.lane.stream)
    for end in ends:
        main.wait_event(end)
    stop.record(main)
    stop.synchronize()
    return start.elapsed_time(stop), [start.elapsed_time(end) for end in ends]


def median_ms(works: list[Work], repeats: int = 5) -> float:
    return statistics.median(launch(works)[0] for _ in range(repeats + 1))


class Gpu:
    """The lanes of this GPU."""

    def __init__(self, splits: list[int]) -> None:
        self.whole = Lane(torch.cuda.Stream(), None)
        self.beside = Lane(torch.cuda.Stream(), None)
        self.splits: dict[str, Partitioning] = {}
        for sms in splits:
            try:
                split = split_device(sms)
            except (ImportError, RuntimeError, AttributeError) as error:
                print(f"no partitioning with {sms} SMs: {error}", flush=True)
                continue
            self.splits[f"{split.first.sms} + {split.second.sms} SMs"] = split


def measure(combination: Combination, gpu: Gpu, decodes: dict[str, Work], repeats: int) -> Cell:
    """All ways of one combination. ``decodes``: decode's graphs by way, captured when missing."""
    c, model = combination, combination.model
    ways: dict[str, list[Work]] = {
        "in turn": [capture(model, gpu.whole, c.run_in_turn)],
        "merged": [capture(model, gpu.whole, c.run_merged)],
    }
    lanes = {"streams": (gpu.whole, gpu.beside)}
    lanes |= {name: (split.first, split.second) for name, split in gpu.splits.items()}
    alone: dict[str, tuple[float, float]] = {}
    problems = []
    for name, (first, second) in lanes.items():
        try:
            if name not in decodes:
                decodes[name] = capture(model, first, c.run_decode)
            ways[name] = [decodes[name], capture(model, second, c.run_cohort)]
            alone[name] = (median_ms(ways[name][:1]), median_ms(ways[name][1:]))
        except RuntimeError as error:
            ways.pop(name, None)
            problems.append(f"{name}: {str(error).splitlines()[0]}")
    for name, works in ways.items():
        for work in works:
            for out in work.out.values():
                out.fill_(float("nan"))
        launch(works)
        out = {key: value for work in works for key, value in work.out.items()}
        if name == "in turn":
            expected = {key: value.clone() for key, value in out.items()}
        check(name, out, expected)
    samples: dict[str, list[float]] = {name: [] for name in ways}
    decode_ends: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, works in ways.items():
            total, ends = launch(works)
            if repeat:  # the first finds the caches as another way left them
                samples[name].append(total)
                decode_ends[name].append(ends[0])
    return Cell(
        c.decode.rows, c.cohort.rows, c.end - c.first, samples, decode_ends, alone, problems
    )


def layers_for(decode_ms: float, layer_ms: float, most: int) -> int:
    """Layers of a cohort that take about as long as decode."""
    return max(1, min(most, round(decode_ms / layer_ms)))


def layers_of(model: Model, gpu: Gpu, decode: Part, cohort: Part, decodes: dict[str, Work]) -> int:
    probe = Combination(model, decode, cohort, 2)
    if "streams" not in decodes:
        decodes["streams"] = capture(model, gpu.whole, probe.run_decode)
    decode_ms = median_ms([decodes["streams"]], 3)
    cohort_ms = median_ms([capture(model, gpu.whole, probe.run_cohort)], 3)
    return layers_for(decode_ms, cohort_ms / 2, model.sizes.layers)


def measure_all(args: argparse.Namespace, report: dict[str, Any]) -> list[Cell]:
    model = Model(Sizes(), "cuda", args.copies)
    gpu = Gpu(args.splits)
    flash = "FlashAttention-3" if flash_attention_3() else "torch's"
    report |= {
        "gpu": torch.cuda.get_device_name(),
        "attention": flash,
        "torch": torch.__version__,
        "cells": [],
    }
    print(f"{report['gpu']}, torch {torch.__version__}, {flash} attention; context {args.context}")
    print_head(list(gpu.splits))
    cells: list[Cell] = []
    end = time.monotonic() + args.seconds
    for requests in args.decode:
        decode = model.decode_part(requests, args.context, copies=4)
        decodes: dict[str, Work] = {}
        for tokens in args.cohort:
            if time.monotonic() > end:
                print(f"{requests:>6}{tokens:>7}  and more: no time left")
                return cells
            try:
                cohort = model.prompt_part(tokens, LONGEST_PROMPT)
                layers = layers_of(model, gpu, decode, cohort, decodes)
                combination = Combination(model, decode, cohort, layers)
                cells.append(measure(combination, gpu, decodes, args.repeats))
            except (RuntimeError, ValueError) as error:
                print(f"{requests:>6}{tokens:>7}  failed: {str(error).splitlines()[0]}", flush=True)
                continue
            print_cell(cells[-1], list(gpu.splits))
            report["cells"].append(cells[-1].figures())
            args.json.write_text(json.dumps(report, indent=1))
            del cohort, combination
    return cells


def dry(args: argparse.Namespace) -> list[Cell]:
    """On the CPU: merged and apart compute the same; host times stand in the table."""
    torch.manual_seed(0)
    model = Model(TINY, "cpu", args.copies)
    cells = []
    print_head([])
    for requests in args.decode:
        decode = model.decode_part(requests, args.context, copies=2)
        for tokens in args.cohort:
            c = Combination(model, decode, model.prompt_part(tokens, 8), 2)
            samples: dict[str, list[float]] = {}
            expected = c.run_in_turn()
            for name, run in (("in turn", c.run_in_turn), ("merged", c.run_merged)):
                start = time.perf_counter()
                check(name, run(), expected)
                samples[name] = [(time.perf_counter() - start) * 1e3]
            cells.append(Cell(requests, tokens, 2, samples, samples, {}, []))
            print_cell(cells[-1], [])
    return cells


def main() -> None:
    args = parse_arguments()
    if not args.dry:
        if not torch.cuda.is_available():
            sys.exit("needs a CUDA GPU; there is none (--dry tries the script without one)")
        if not native_status().cuda:
            sys.exit(f"no kernels for the experts: {native_status().reason}")
    start = time.monotonic()
    report: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(args).items()}}
    with torch.no_grad():
        cells = dry(args) if args.dry else measure_all(args, report)
    report["verdict"] = verdict(cells)
    report["seconds"] = round(time.monotonic() - start, 1)
    args.json.write_text(json.dumps(report, indent=1))
    print(report["verdict"])
    print(f"{report['seconds']} s")


if __name__ == "__main__":
    main()
