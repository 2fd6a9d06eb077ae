"""SGLang's own schedule with --moe-kernels sglang and layered: answers, prefill and decode speed.

Starts one server after the other on this machine's GPU (dummy weights of trained ones' size:
drawn_weights.py), sends each the same prompts and compares log-probabilities. How far SGLang's own
move when the same prompts share batches, and with another of its own kernels (--controls), says what
bf16 noise is. Prints a table; --report takes the
figures as JSON, after each step. Fails where log-probabilities tell nothing (answer_distance.py).

  python benchmarks/serving/moe_kernels_in_server.py --report moe_kernels.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "server"))
import harness
from answer_distance import VoidComparison, distance
from harness import Request, Server, free_port, generate_all, running
from plugin_folder import python_path

FLAGS = (
    *("--load-format", "dummy", "--dtype", "bfloat16", "--skip-tokenizer-init"),
    *("--prefill-schedule", "chunked", "--chunked-prefill-size", "8192", "--disable-radix-cache"),
    *("--attention-backend", "fa3", "--disable-prefill-cuda-graph", "--max-total-tokens", "60000"),
    *("--mem-fraction-static", "0.87", "--cuda-graph-max-bs-decode", "32"),
    "--incremental-streaming-output",
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="qwen3-30b-a3b", help="preset of layered_sglang.make_model")
    add("--servers", nargs="+", default=["sglang", "layered"], choices=("sglang", "layered"))
    add(
        "--controls",
        nargs="*",
        default=[],
        help="SGLang with other --moe-runner-backend, for its noise",
    )
    add("--compared", type=int, nargs="+", default=[4, 33, 150, 600], help="prompt tokens")
    add("--prefill-tokens", type=int, default=8192)
    add("--prefills", type=int, default=8, help="0: compare answers alone")
    add("--decode-batches", type=int, nargs="+", default=[1, 8, 32])
    add("--decode-tokens", type=int, default=200)
    add("--vocabulary", type=int, default=100_000, help="prompts are of ids below that")
    add("--start-seconds", type=int, default=280)
    add("--log", type=Path, default=Path(), help="folder of the servers' logs")
    add("--report", type=Path)
    add("flags", nargs="*", default=FLAGS, help="flags of both servers, in the place of ours")
    return parser.parse_args()


def prompt(length: int, seed: int, vocabulary: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(vocabulary) for _ in range(length))


def compared_requests(args: argparse.Namespace) -> list[Request]:
    forever = (("ignore_eos", True),)
    return [
        Request(prompt(n, n, args.vocabulary), 8, forever, logprob_start=0) for n in args.compared
    ]


async def measure_prefill(session: aiohttp.ClientSession, server: Server, args: Any) -> dict:
    """Prompts one after the other, each answered with one token."""
    seconds = []
    for i in range(args.prefills + 2):
        body = Request(prompt(args.prefill_tokens, 1000 + i, args.vocabulary), 1).body(None)
        start = time.perf_counter()
        async with session.post(server.url + "/generate", json=body) as response:
            response.raise_for_status()
            await response.read()
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[2:])  # the first two compile what is left to compile
    median = statistics.median(seconds)
    return {
        "median_ms": median * 1e3,
        "min_ms": seconds[0] * 1e3,
        "max_ms": seconds[-1] * 1e3,
        "tokens_per_second": args.prefill_tokens / median,
    }


async def stream_itl(
    session: aiohttp.ClientSession, server: Server, prompt_ids: tuple[int, ...], tokens: int
) -> float:
    """Seconds from token to token of one stream, over its second half: all streams decode then."""
    request = Request(prompt_ids, tokens, (("ignore_eos", True),), True)
    times: list[tuple[float, int]] = []
    async with session.post(server.url + "/generate", json=request.body(None)) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                count = json.loads(line[6:])["meta_info"]["completion_tokens"]
                times.append((time.perf_counter(), count))
    half = [t for t in times if t[1] >= tokens // 2]
    return (half[-1][0] - half[0][0]) / (half[-1][1] - half[0][1])


async def measure_decode(session: aiohttp.ClientSession, server: Server, args: Any) -> dict:
    result = {}
    for batch in args.decode_batches:
        medians = []
        for repeat in range(3):
            streams = [
                stream_itl(session, server, prompt(64, seed, args.vocabulary), args.decode_tokens)
                for seed in range(10_000 * repeat, 10_000 * repeat + batch)
            ]
            medians.append(statistics.median(await asyncio.gather(*streams)) * 1e3)
        result[batch] = {"itl_ms": statistics.median(medians), "runs_ms": medians}
    return result


async def measure_speed(server: Server, args: argparse.Namespace) -> dict:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session:
        return {
            "prefill": await measure_prefill(session, server, args),
            "decode": await measure_decode(session, server, args),
        }


def serve(kernels: str, args: argparse.Namespace, model: Path, name: str, report: dict) -> dict:
    """One server's figures; what goes wrong is noted and the rest goes on."""
    result: dict[str, Any] = {}
    command = [
        *(sys.executable, "-m", "layered_sglang.launch_server", "--model-path", str(model)),
        *("--port", str(free_port()), *args.flags),
        *("--moe-kernels", "layered" if kernels == "layered" else "sglang"),
        *(("--moe-runner-backend", kernels) if kernels in args.controls else ()),
    ]
    log = args.log / f"{name}.log"
    start = time.monotonic()
    try:
        with running(command, log) as server:
            result["start_seconds"] = round(time.monotonic() - start, 1)
            lines = log.read_text(errors="replace").splitlines()
            result["says"] = [x.split("experts: ")[1] for x in lines if "experts: " in x][:1]
            requests = compared_requests(args)
            result["alone"] = [a for [a] in asyncio.run(generate_all(server, requests, 1))]
            if kernels == "sglang":
                # NOTE: logits of all prompt tokens of a batch are held at once, 0.6 MB a token.
                together = requests * 2
                answers = asyncio.run(generate_all(server, together, len(together)))
                result["together"] = [a for [a] in answers[: len(requests)]]
            if args.prefills:
                result.update(asyncio.run(measure_speed(server, args)))
    except BaseException as error:
        tail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        report["problems"].append(f"{name}: {type(error).__name__}: {str(error)[-1500:]}\n{tail}")
    result["seconds"] = round(time.monotonic() - start, 1)
    return result


def summarise(results: dict[str, dict], report: dict) -> None:
    """Everything but the answers themselves, and their distances."""
    for name, result in results.items():
        report[name] = {k: v for k, v in result.items() if k not in ("alone", "together")}
    sglang = next((r for n, r in results.items() if n.startswith("sglang") and "alone" in r), None)
    if sglang is None:
        return
    compared = {}
    if "together" in sglang:
        what = "sglang in shared batches, against sglang alone"
        compared[what] = sglang["together"], True
    for name, result in results.items():
        if result is not sglang and "alone" in result:
            compared[f"{name} against sglang"] = result["alone"], name.startswith("sglang")
    report["distances"], report["void"] = {}, []
    for what, (answers, same_kernels) in compared.items():
        try:
            report["distances"][what] = distance(answers, sglang["alone"], same_kernels)
        except VoidComparison as error:
            report["void"].append(f"{what}: comparison void: {error}")
            break  # the same would be said of the others


def print_table(report: dict, names: list[str]) -> None:
    for name in names:
        result = report[name]
        print(f"{name}: experts by {result.get('says')}, start {result.get('start_seconds')} s")
        if prefill := result.get("prefill"):
            print(f"  prefill {prefill['median_ms']:.1f} ms ({prefill['min_ms']:.1f} ... "
                  f"{prefill['max_ms']:.1f}), {prefill['tokens_per_second']:.0f} tokens/s")  # fmt: skip
        for batch, decode in result.get("decode", {}).items():
            runs = ", ".join(f"{ms:.2f}" for ms in decode["runs_ms"])
            print(f"  decode batch {batch}: ITL {decode['itl_ms']:.2f} ms ({runs})")
    for what, d in report.get("distances", {}).items():
        print(f"{what}: mean {d['mean']:.4f}, rms {d['rms']:.4f}, max {d['max']:.4f}, rms/spread "
              f"{d['rms_over_spread']:.4f}, {d['same_first_token']} of {d['prompts']} first tokens "
              f"equal, {d['logprobs']} log-probabilities of spread {d['spread']:.2f}")  # fmt: skip


def main() -> None:
    args = parse_arguments()
    harness.START_SECONDS = args.start_seconds
    os.environ["PYTHONPATH"] = python_path("drawn_weights")
    model = Path(tempfile.mkdtemp()) / args.model
    subprocess.run(
        [sys.executable, "-m", "layered_sglang.make_model", args.model, str(model)], check=True
    )
    report: dict[str, Any] = {"flags": " ".join(args.flags), "problems": [], "void": []}
    results: dict[str, dict] = {}
    for i, kernels in enumerate([*args.servers, *args.controls]):
        name = kernels if kernels not in results else f"{kernels}-{i}"
        results[name] = serve(kernels, args, model, name, report)
        summarise(results, report)
        if args.report:
            args.report.write_text(json.dumps(report, indent=1))
    print_table(report, list(results))
    problems = report["problems"] + report["void"]
    for problem in problems:
        print(f"problem: {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
