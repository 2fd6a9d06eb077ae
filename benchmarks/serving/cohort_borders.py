"""One layered server on this machine's GPU: are results seen when the GPU has them, and are they right?

1. Log-probabilities of prompts alone (SGLang's own prefill) and beside running requests (layer groups,
   through graphs and eagerly), with dummy weights of trained ones' size (drawn_weights.py).
2. Prompts of many lengths follow one another beside running requests. An iteration whose result comes
   late, and the next one's as much earlier, stood at a cohort's border: from the server's own trace.
3. Host time by part of iterations with a layer group (host_clock.py).

Prints tables; figures go to --report, step by step.

  python benchmarks/serving/cohort_borders.py --seconds 100
  python benchmarks/serving/cohort_borders.py --tiny --seconds 120     tries the script without a GPU
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "server"))
import harness
from answer_distance import VoidComparison, distance
from harness import Answer, Request, Server, free_port, generate, generate_all, running
from host_clock import FOLDER
from host_time import Client, measure_host
from host_time_table import print_report
from layered_sglang.model_zoo import find_preset, write_model
from plugin_folder import python_path

FLAGS = ("--skip-tokenizer-init", "--incremental-streaming-output", "--disable-radix-cache")
GPU_FLAGS = (
    *("--load-format", "dummy", "--dtype", "bfloat16", "--attention-backend", "fa3"),
    *("--disable-prefill-cuda-graph", "--mem-fraction-static", "0.85"),
    *("--cuda-graph-max-bs-decode", "32", "--itl-slo-ms", "40"),
)
FOREVER = (("ignore_eos", True),)
LATE = 0.005  #: seconds beyond the prediction from which a result came late


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="qwen3-30b-a3b", help="preset of layered_sglang.make_model")
    add("--seconds", type=float, default=100, help="of everything, the server's start included")
    add("--running", type=int, default=4, help="requests that decode meanwhile")
    add("--compared", type=int, nargs="+", default=[200, 900, 1500, 3000, 4500], help="tokens")
    add("--prompts", type=int, nargs="+", default=[2000, 3500, 6000, 8000], help="host time")
    add("--flags", default="", help="more flags of the server, in one word")
    add("--tiny", action="store_true", help="a tiny model on a CPU, to try this script")
    add("--log", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of logs")
    add("--report", type=Path, help="default: cohort_borders.json in --log")
    args = parser.parse_args()
    args.report = args.report or args.log / "cohort_borders.json"
    args.vocabulary, args.longest, args.tokens = 100_000, 8192, 3000
    args.host_batches, args.running_tokens = [args.running], 500
    if args.tiny:
        args.compared, args.prompts = [100, 300], [100, 300]
        args.vocabulary, args.longest, args.tokens, args.running_tokens = 256, 600, 400, 100
    return args


def prompt(length: int, rng: random.Random, args: argparse.Namespace) -> tuple[int, ...]:
    return tuple(rng.randrange(args.vocabulary) for _ in range(length))


def decoding(args: argparse.Namespace) -> list[Request]:
    rng = random.Random(1)
    return [Request(prompt(64, rng, args), args.tokens, FOREVER) for _ in range(args.running)]


async def beside(server: Server, requests: list[Request], args: argparse.Namespace) -> list[Answer]:
    """Answers to ``requests``, one after the other, while others decode."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        others = [asyncio.create_task(generate(session, server, r)) for r in decoding(args)]
        await asyncio.sleep(0.5)
        answers = [(await generate(session, server, request))[0] for request in requests]
        for other in others:
            other.cancel()
    return answers


async def compare(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """Distances of the last 50 prompt tokens' log-probabilities and the first answered token's."""
    rng = random.Random(2)
    requests = [
        Request(prompt(n, rng, args), 4, FOREVER, logprob_start=n - 50) for n in args.compared
    ]
    alone = [answer for [answer] in await generate_all(server, requests, 1)]
    result = {}
    for request, one, other in zip(
        requests, alone, await beside(server, requests, args), strict=True
    ):
        try:
            result[str(len(request.prompt))] = distance([other], [one], same_kernels=True)
        except VoidComparison as error:
            result[str(len(request.prompt))] = {"void": str(error)}
    return result


async def drive(server: Server, args: argparse.Namespace, end: float) -> int:
    """Prompts of many lengths, two at a time, while others decode. Returns how many were answered."""
    rng, answered = random.Random(3), 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:

        async def prompts() -> None:
            nonlocal answered
            while time.monotonic() < end:
                length = rng.randint(args.longest // 20, round(1.3 * args.longest))
                await generate(session, server, Request(prompt(length, rng, args), 20, FOREVER))
                answered += 1

        others = [asyncio.create_task(generate(session, server, r)) for r in decoding(args)]
        await asyncio.sleep(0.5)
        await asyncio.gather(prompts(), prompts())
        for other in others:
            other.cancel()
    return answered


def borders(trace: Path, since: int) -> dict[str, Any]:
    """What of the trace's iterations after number ``since`` stood at the borders of cohorts."""
    iterations = [json.loads(line) for line in trace.read_text().splitlines()]
    iterations = [i for i in iterations if i["iteration"] > since]
    excess: dict[str, list[float]] = {}
    late = []
    # Where the server has no profile of its GPU, its predictions are off by a factor.
    within = [
        before["seconds"] / before["predicted"]
        for before, now in itertools.pairwise(iterations)
        if before["kind"] == now["kind"] == "merged" and before["predicted"] and now["layers"][0]
    ]
    factor = statistics.median(within) if within else 1.0
    for before, now in itertools.pairwise(iterations):
        if now["kind"] != "merged" or not (now["predicted"] and before["predicted"]):
            continue
        first = now["layers"][0] == 0
        kind = f"{before['kind']}, then {'a first' if first else 'another'} layer group"
        beyond = before["seconds"] - factor * before["predicted"]
        excess.setdefault(kind, []).append(beyond * 1e3)
        if beyond > LATE:
            late.append(
                {
                    "late_ms": round(beyond * 1e3, 1),
                    "next_early_ms": round((factor * now["predicted"] - now["seconds"]) * 1e3, 1),
                    "kinds": [before["kind"], now["kind"]],
                    "layers": [before["layers"], now["layers"]],
                    "cohort": [row[1:] for row in now["cohort"]],
                    "running": len(now["decode"]),
                }
            )
    return {
        "iterations": len(iterations),
        "measured_over_predicted": factor,
        "late": late,
        "excess_ms": {
            kind: {
                "n": len(values),
                "median": statistics.median(values),
                "p90": sorted(values)[int(0.9 * len(values))],
                "most": max(values),
            }
            for kind, values in excess.items()
        },
    }


def last_iteration(trace: Path) -> int:
    lines = trace.read_text().splitlines()
    return json.loads(lines[-1])["iteration"] if lines else 0


async def host_times(
    server: Server, clock: Path, args: argparse.Namespace, end: float
) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=max(30.0, end - time.monotonic()))
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session:
        return await measure_host(Client(session, server, args.vocabulary), clock, args, end)


def measure(server: Server, trace: Path, clock: Path, args: Any, end: float, report: dict) -> None:
    def save(**figures: Any) -> None:
        report.update(figures)
        args.report.write_text(json.dumps(report, indent=1))

    save(distances=asyncio.run(compare(server, args)))
    for tokens, d in report["distances"].items():
        print(f"prompt of {tokens}, beside others against alone: {d}", flush=True)
    server.wait_idle()
    since = last_iteration(trace)
    until = time.monotonic() + 0.6 * max(0.0, end - time.monotonic())
    answered = asyncio.run(drive(server, args, until))
    server.wait_idle()
    save(answered=answered, borders=borders(trace, since))
    print(f"{answered} prompts", json.dumps(report["borders"]["excess_ms"], indent=1))
    for line in report["borders"]["late"]:
        print("late", json.dumps(line), flush=True)
    save(host={"layered": asyncio.run(host_times(server, clock, args, end))})


def main() -> None:
    args = parse_arguments()
    begin = time.monotonic()
    end = begin + args.seconds - 5
    harness.START_SECONDS = int(args.seconds * 0.8)
    args.log.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    plugins = ["host_clock"] if args.tiny else ["host_clock", "drawn_weights"]
    os.environ["PYTHONPATH"] = python_path(*plugins)
    write_model(find_preset("tiny" if args.tiny else args.model), folder / "model")
    trace, clock = args.log / "cohort_borders-trace.jsonl", args.log / "clock"
    trace.unlink(missing_ok=True)
    clock.mkdir(exist_ok=True)
    command = [
        *(sys.executable, "-m", "layered_sglang.launch_server", "--model-path"),
        *(str(folder / "model"), "--port", str(free_port()), *FLAGS),
        *(("--dtype", "float32", "--itl-slo-ms", "20") if args.tiny else GPU_FLAGS),
        *("--layered-trace-file", str(trace), "--sleep-on-idle", *args.flags.split()),
    ]
    report: dict[str, Any] = {"itl_ms": {}, "host": {}, "problem": None, "command": command}
    try:
        with running(command, args.log / "cohort_borders.log", {FOLDER: str(clock)}) as server:
            report["start_seconds"] = round(time.monotonic() - begin, 1)
            print(f"start {report['start_seconds']} s", flush=True)
            measure(server, trace, clock, args, end, report)
    except (Exception, asyncio.CancelledError) as error:
        report["problem"] = f"{type(error).__name__}: {str(error)[-3000:]}"
    report["seconds"] = round(time.monotonic() - begin, 1)
    args.report.write_text(json.dumps(report, indent=1))
    print_report(report)
    sys.exit(report["problem"])


if __name__ == "__main__":
    main()
