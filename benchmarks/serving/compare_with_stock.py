"""Does the layered server answer as stock SGLang does, on this machine's GPU?

Starts both servers with the same flags, asks stock SGLang for each answer with nothing beside it,
then sends random traffic (tests/server/mixtures.py, aborts included) and long prompts into running
requests to both (compared_traffic.py; the models: compared_models.py). Prints one JSON object: per
server how many answers equal those references, and how far log-probabilities are off. With
--enable-deterministic-inference among the flags a difference is an error; without it SGLang's kernels
sum in an order that depends on the batch, and stock under load says how much that
alone changes.

  python benchmarks/serving/compare_with_stock.py -- --dtype bfloat16 --attention-backend fa3 ...
  python benchmarks/serving/compare_with_stock.py --preset tiny-deepseek-v3 --fp8 -- --dtype bfloat16 ...
  python benchmarks/serving/compare_with_stock.py --adapters -- --dtype bfloat16 --lora-backend triton ...
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "server"))
import harness
from compared_models import DRAFTS, write_folders
from compared_traffic import long_prompts, with_adapters, with_pictures
from harness import Answer, Request, Server, free_port, generate, generate_all, running
from mixtures import Arrival, make_mixture, make_requests

SEED = 20261123


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", help="folder; default: a tiny preset, widened for GPU kernels")
    add("--preset", default="tiny", help="which, of layered_sglang.make_model")
    add("--fp8", action="store_true", help="that preset in block-scaled fp8")
    add(
        "--draft",
        choices=("", *DRAFTS),
        default="",
        help="speculative decoding by it, in both servers",
    )
    add("--adapters", action="store_true", help="three random LoRA adapters, taken in turn")
    add("--pictures", action="store_true", help="in every third prompt")
    add("--again", action="store_true", help="also ask for prompts that left the device's KV cache")
    add("--requests", type=int, default=60)
    add("--mixtures", type=int, default=16)
    add("--running", type=int, default=6, help="requests that decode while long prompts come")
    add("--running-tokens", type=int, default=200)
    add("--prompts", type=int, default=8, help="long prompts")
    add("--start-seconds", type=int, default=300)
    add("--log", type=Path, default=Path())
    add("--name", default="compare", help="prefix of the logs")
    add("--layered", default="", help="flags of the layered server alone, in one word")
    add("--stock", default="", help="flags of the stock server alone, in one word")
    add("--report", type=Path)
    add("flags", nargs="*", help="flags of both servers")
    return parser.parse_args()


class Tally:
    """Answers against their references."""

    def __init__(self) -> None:
        self.answers = self.equal = self.tokens = self.equal_tokens = self.aborted = 0
        self.cached = self.from_host = 0
        self.output_logprob = self.prompt_logprob = 0.0
        self.prompt_logprobs: list[float] = []
        self.different: list[str] = []

    def add(self, got: Answer, want: Answer, name: str, may_be_aborted: bool) -> None:
        n = len(want.tokens)
        if may_be_aborted and (got.finish == "abort" or "AbortReq" in got.finish):
            self.aborted += 1
            n = len(got.tokens)
        pairs = list(zip(got.tokens, want.tokens[:n], strict=False))
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        self.answers += 1
        self.cached += got.cached
        self.from_host += got.from_host
        self.tokens += n
        self.equal_tokens += same
        if same == n == len(got.tokens):
            self.equal += 1
        else:
            self.different.append(f"{name}: {got.finish}, {same} of {n} tokens as the reference's")
        for a, b in zip(got.logprobs[:same], want.logprobs[:same], strict=False):
            self.output_logprob = max(self.output_logprob, abs(a - b))
        for a, b in zip(got.prompt_logprobs, want.prompt_logprobs, strict=False):
            if a is not None and b is not None:
                self.prompt_logprobs.append(abs(a - b))

    def summary(self) -> dict:
        diffs = sorted(self.prompt_logprobs)
        return {
            "answers": self.answers,
            "equal_answers": self.equal,
            "tokens": self.tokens,
            "tokens_before_a_difference": self.equal_tokens,
            "aborted": self.aborted,
            "cached_prompt_tokens": self.cached,
            "cached_prompt_tokens_from_host": self.from_host,
            "max_output_logprob_difference": self.output_logprob,
            "prompt_logprobs": len(diffs),
            "equal_prompt_logprobs": diffs.count(0.0),
            "mean_prompt_logprob_difference": sum(diffs) / len(diffs) if diffs else None,
            "p50_prompt_logprob_difference": diffs[len(diffs) // 2] if diffs else None,
            "max_prompt_logprob_difference": diffs[-1] if diffs else None,
            "different": self.different[:20],
        }


async def send(
    server: Server,
    asked: list[Request],
    references: list[list[Answer]],
    arrivals: list[Arrival],
    tally: Tally,
) -> None:
    """Send `arrivals` and compare what comes back."""

    async def one(session: aiohttp.ClientSession, number: int, arrival: Arrival) -> None:
        request = asked[arrival.index]
        several = dict(request.sampling).get("n", 1) > 1
        await asyncio.sleep(arrival.delay)
        rid = None if several else f"r{number}-{time.time_ns()}"
        task = asyncio.create_task(generate(session, server, request, rid))
        aborted = arrival.abort_after is not None and rid is not None
        if aborted:
            await asyncio.sleep(arrival.abort_after)
            async with session.post(server.url + "/abort_request", json={"rid": rid}):
                pass
        for got, want in zip(await task, references[arrival.index], strict=True):
            name = f"request {arrival.index} ({len(request.prompt)} tokens, {request.sampling})"
            tally.add(got, want, name, aborted)

    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(one(session, i, a) for i, a in enumerate(arrivals)))


def make_traffic(args: argparse.Namespace) -> tuple[list[Request], tuple]:
    """Requests to mix; running requests and long prompts, and when they arrive."""
    requests = make_requests(args.requests, SEED)
    asked, arrivals = long_prompts(
        SEED, args.running, args.running_tokens, args.prompts, 0.5 if args.again else 0.0
    )
    if args.adapters:
        requests, asked = with_adapters(requests), with_adapters(asked)
    if args.pictures:
        requests, asked = with_pictures(requests, SEED), with_pictures(asked, SEED)
    return requests, (asked, arrivals)


def under_load(
    server: Server, requests: list[Request], references: list, long: tuple, args: argparse.Namespace
) -> dict:
    """The traffic; afterwards nothing may be left in the KV pool."""
    asked, arrivals, long_references = long
    results = {}
    traffic = {"mixtures": args.mixtures, "long_prompts": 2, "again": 2 if args.again else 0}
    for name, repeats in traffic.items():
        tally, start = Tally(), time.monotonic()
        for i in range(repeats):
            if name == "mixtures":
                mixture = make_mixture(len(requests), SEED + i)
                asyncio.run(send(server, requests, references, mixture, tally))
            else:
                if name == "again":  # each takes the places of earlier ones
                    asyncio.run(generate_all(server, asked, at_once=1))
                asyncio.run(send(server, asked, long_references, arrivals, tally))
            server.wait_idle()
            assert server.held_tokens() == 0, f"{name} {i} left KV behind"
        if repeats:
            results[name] = tally.summary() | {"seconds": round(time.monotonic() - start, 1)}
    return results


def main() -> None:
    args = parse_arguments()
    harness.START_SECONDS = args.start_seconds
    write_folders(args)
    start = time.monotonic()
    report: dict = {
        "model": f"{args.preset} in fp8" if args.fp8 else args.preset,
        "flags": " ".join(args.flags),
        "layered_flags": args.layered,
        "stock_flags": args.stock,
        "problems": [],
        "seconds": {},
    }
    commands = {
        "stock": ["-m", "sglang.launch_server", *args.flags, *args.stock.split()],
        "layered": [
            *("-m", "layered_sglang.launch_server", "--enable-metrics"),
            *(*args.flags, *args.layered.split()),
        ],
    }
    contexts = {
        name: running(
            [sys.executable, *command, "--model-path", args.model, "--port", str(free_port())],
            args.log / f"{args.name}-{name}.log",
        )
        for name, command in commands.items()
    }

    @contextlib.contextmanager
    def noted(what: str):
        """A step: what goes wrong in it goes into the report, and so does the time at its end."""
        try:
            yield
        except BaseException as error:
            report["problems"].append(f"{what}: {type(error).__name__}: {str(error)[-3000:]}")
        report["seconds"][what] = round(time.monotonic() - start, 1)
        if args.report:
            args.report.write_text(json.dumps(report, indent=1))

    servers: dict[str, Server] = {}

    def enter(name: str) -> None:
        with noted(f"{name} start"):
            servers[name] = contexts[name].__enter__()

    # NOTE: a server dies with the thread that started it, so these threads stay to the end.
    pool = ThreadPoolExecutor()
    list(pool.map(enter, contexts))

    requests, (asked, arrivals) = make_traffic(args)
    alone: list[list[Answer]] = []
    if "stock" in servers:
        with noted("references"):
            alone = asyncio.run(generate_all(servers["stock"], [*requests, *asked], at_once=1))
    for name in [n for n in ("layered", "stock") if alone and n in servers]:
        with noted(f"{name} under load"):
            long = (asked, arrivals, alone[len(requests) :])
            report[name] = under_load(servers[name], requests, alone, long, args)
            if name == "layered":
                report["counters"] = servers[name].counters()
    for name in servers:
        with noted(f"{name} end"):
            contexts[name].__exit__(None, None, None)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["problems"]))


if __name__ == "__main__":
    main()
