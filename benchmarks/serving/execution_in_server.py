"""--layered-execution merged and overlapped: the same prompts beside the same running requests.

Starts two layered servers at once on this machine's GPU (Qwen3-30B-A3B's layers with fewer experts, so
that two fit; drawn weights, so that answers tell something). They take turns: while requests decode,
long prompts come, each in the same number of layer groups on both, so ITL is the time of an iteration.
Prints ITL, TTFT, and how far the answers' log-probabilities are from merged's; the figures go to
--report (default: $OUT/execution.json).

  python benchmarks/serving/execution_in_server.py --seconds 420
  python benchmarks/serving/execution_in_server.py --tiny       tries it on a CPU: merged twice
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "server"))
import harness
from harness import Answer, Request, Server, generate
from host_time import FLAGS, GPU_FLAGS, RUNNING_PROMPT, VOCABULARY, prompt, servers, write_folder
from plugin_folder import python_path

FOREVER = (("ignore_eos", True),)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=420, help="of everything, the servers' start included")
    add("--experts", type=int, default=48, help="of each layer")
    add("--batches", type=int, nargs="+", default=[8, 32], help="requests that decode, 2 or more")
    add("--prompt", type=int, default=8000, help="tokens of each prompt that comes")
    add("--prompts", type=int, default=4, help="a repeat")
    add("--repeats", type=int, default=4)
    add("--layer-groups", type=int, default=10, help="of each prompt")
    add("--tiny", action="store_true", help="a tiny model on a CPU, to try this script")
    add("--log", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of logs")
    add("--report", type=Path, help="default: execution.json in --log")
    args = parser.parse_args()
    args.report = args.report or args.log / "execution.json"
    if args.tiny:
        args.batches, args.prompt, args.prompts, args.repeats, args.layer_groups = [2], 300, 2, 2, 4
    return args


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    start = [sys.executable, "-m", "layered_sglang.launch_server"]
    start += ["--model-path", str(write_folder(args)), "--num-layer-groups", str(args.layer_groups)]
    flags = [*FLAGS, *(("--dtype", "float32") if args.tiny else GPU_FLAGS)]
    overlapped = ["--layered-execution", "overlapped"]
    if args.tiny:
        overlapped = []
    else:
        flags += ["--cuda-graph-bs-decode", *map(str, sorted({*args.batches, 1}))]
        flags += ["--max-total-tokens", "120000"]  # the later one holds
    return {"merged": [*start, *flags], "overlapped": [*start, *flags, *overlapped]}


async def one_repeat(
    session: aiohttp.ClientSession, server: Server, batch: int, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Prompts one after the other while ``batch`` requests decode."""
    rng, vocabulary = random.Random(seed), 256 if args.tiny else VOCABULARY

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(prompt(length, rng, vocabulary))

    asked = [Request(tokens(RUNNING_PROMPT), 2000, FOREVER, i == 0) for i in range(batch)]
    decoding = [asyncio.create_task(generate(session, server, request)) for request in asked]
    await asyncio.sleep(1.0)
    answers: list[Answer] = []
    spans: list[tuple[float, float]] = []
    for _ in range(args.prompts):
        start = time.perf_counter()
        (answer,) = await generate(session, server, Request(tokens(args.prompt), 1, FOREVER))
        answers.append(answer)
        spans.append((start, time.perf_counter()))
    async with session.post(server.url + "/abort_request", json={"abort_all": True}):
        pass
    (watched,), (whole,), *_ = await asyncio.gather(*decoding)  # a stream brings tokens piecemeal
    gaps = [
        after - before
        for before, after in zip(watched.times, watched.times[1:], strict=False)
        if any(start <= before and after <= end for start, end in spans)
    ]
    if not gaps or answers[0].finish.startswith("http"):
        raise RuntimeError(f"no tokens while prompts ran; the first prompt's answer: {answers[0]}")
    return {
        "itl_ms": statistics.fmean(gaps) * 1e3,
        "itl_max_ms": max(gaps) * 1e3,
        "ttft_ms": statistics.fmean(end - start for start, end in spans) * 1e3,
        "first_tokens": [a.tokens for a in answers],
        "logprobs": [a.logprobs for a in answers],
        "decode_tokens": whole.tokens[:200],
        "decode_logprobs": whole.logprobs[:200],
    }


async def measure(
    started: dict[str, Server], args: argparse.Namespace, end: float, report: dict
) -> None:
    timeout = aiohttp.ClientTimeout(total=max(30.0, end - time.monotonic()))
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session:
        for server in started.values():  # what is left to compile
            for batch in args.batches:
                await one_repeat(session, server, batch, args, seed=99)
        for repeat in range(args.repeats):
            for batch in args.batches:
                if repeat > 1 and time.monotonic() > end - 20:
                    return
                for name in sorted(started, reverse=bool(repeat % 2)):
                    runs = report["runs"].setdefault(str(batch), {}).setdefault(name, [])
                    runs.append(await one_repeat(session, started[name], batch, args, repeat))


def distances(merged: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the first tokens after a prompt, and of decode's tokens as long as they are the same."""
    equal = total = 0
    first, decode = [], []
    for a, b in zip(merged, other, strict=False):
        for x, y, p, q in zip(
            a["first_tokens"], b["first_tokens"], a["logprobs"], b["logprobs"], strict=False
        ):
            total, equal = total + 1, equal + (x == y)
            if x == y:
                first.append(abs(p[0] - q[0]))
        for x, y, p, q in zip(
            a["decode_tokens"],
            b["decode_tokens"],
            a["decode_logprobs"],
            b["decode_logprobs"],
            strict=False,
        ):
            if x != y:
                break
            decode.append(abs(p - q))
    return {
        "first_tokens": total,
        "equal": equal,
        "first_logprob_difference": statistics.fmean(first) if first else None,
        "decode_tokens_until_a_difference": len(decode),
        "decode_logprob_difference": statistics.fmean(decode) if decode else None,
    }


def print_report(report: dict[str, Any]) -> None:
    for batch, runs in report["runs"].items():
        if set(runs) != {"merged", "overlapped"}:
            continue
        for what in ("itl_ms", "itl_max_ms", "ttft_ms"):
            values = {name: [run[what] for run in runs[name]] for name in runs}
            texts = [
                f"{name} {statistics.median(v):.2f} ({min(v):.2f} ... {max(v):.2f})"
                for name, v in values.items()
            ]
            ratio = statistics.median(values["overlapped"]) / statistics.median(values["merged"])
            print(f"decode {batch:>3}: {what:<11}{'  '.join(texts)}  overlapped/merged {ratio:.3f}")
        print(f"decode {batch:>3}: answers {distances(runs['merged'], runs['overlapped'])}")


def main() -> None:
    args = parse_arguments()
    begin = time.monotonic()
    end = begin + args.seconds
    harness.START_SECONDS = int(args.seconds * 0.7)
    os.environ["PYTHONPATH"] = python_path("drawn_weights")
    args.log.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"runs": {}, "problem": None}
    report["flags"] = {name: str(value) for name, value in vars(args).items()}
    try:
        with servers(commands(args), args.log / "execution", {}) as started:
            report["start_seconds"] = round(time.monotonic() - begin, 1)
            report["graphs"] = {
                name: [
                    x for x in s.log.read_text(errors="replace").splitlines() if "layer graphs" in x
                ]
                for name, s in started.items()
            }
            asyncio.run(measure(started, args, end - 10, report))
    except (Exception, asyncio.CancelledError) as error:
        report["problem"] = f"{type(error).__name__}: {str(error)[-3000:]}"
    report["seconds"] = round(time.monotonic() - begin, 1)
    args.report.write_text(json.dumps(report, indent=1))
    print(json.dumps(report.get("graphs"), indent=1))
    print_report(report)
    print(f"start {report.get('start_seconds')} s, all {report['seconds']} s")
    sys.exit(report["problem"])


if __name__ == "__main__":
    main()
