"""Running requests while long prompts arrive: what do the prompts do to those that decode?

Against a server that runs already, started with --skip-tokenizer-init (requests are token ids) and
--incremental-streaming-output (or what a stream repeats costs more than what it brings): a fixed
of requests decodes all the time, prompts with a short answer arrive at random. Prints one JSON
object: inter-token latency of the running requests, time to first token of the prompts, both as the
client sees them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field

import aiohttp


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:30000")
    add("--running", type=int, default=16, help="requests that decode all the time")
    add("--running-prompt", type=int, default=512, help="prompt tokens of each of them")
    add("--running-answer", type=int, default=14_000, help="tokens each would get; never reached")
    add("--rate", type=float, default=0.5, help="arriving prompts per second (Poisson)")
    add("--prompt", type=int, nargs=2, default=(7000, 13000), help="their tokens (uniform)")
    add("--answer", type=int, default=32, help="tokens that each of them is answered with")
    add("--seconds", type=float, default=60, help="measured time, after the warm-up")
    add("--warm-up", type=int, nargs="*", default=(600, 3000, 7001, 9500, 13000))
    add("--vocabulary", type=int, default=100_000)
    add("--seed", type=int, default=0)
    return parser.parse_args()


@dataclass
class Stream:
    """One request: when it was sent and when its tokens came (host seconds)."""

    prompt_tokens: int
    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # in all, at each of `times`
    error: str = ""

    def gaps(self, start: float, end: float) -> list[float]:
        """Seconds from token to token within [start, end]; tokens that come together share."""
        gaps: list[float] = []
        for i in range(1, len(self.times)):
            if start <= self.times[i - 1] and self.times[i] <= end:
                count = self.tokens[i] - self.tokens[i - 1]
                gaps += [(self.times[i] - self.times[i - 1]) / count] * count
        return gaps


async def send(
    session: aiohttp.ClientSession, args: argparse.Namespace, prompt: list[int], answer: int
) -> Stream:
    """Stream one request to its end (or to cancellation)."""
    stream = Stream(len(prompt), time.perf_counter())
    streams.append(stream)
    body = {
        "input_ids": prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": answer, "ignore_eos": True},
        "stream": True,
    }
    async with session.post(args.url + "/generate", json=body) as response:
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            chunk = json.loads(line[6:])
            if "meta_info" not in chunk:
                stream.error = line.decode()[:500]
                continue
            stream.times.append(now)
            stream.tokens.append(chunk["meta_info"]["completion_tokens"])
    return stream


streams: list[Stream] = []


async def measure(args: argparse.Namespace) -> dict:
    rng = random.Random(args.seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(args.vocabulary) for _ in range(count)]

    arrivals, at = [], 0.0
    while (at := at + rng.expovariate(args.rate)) < args.seconds:
        arrivals.append((at, tokens(rng.randint(*args.prompt))))

    connector = aiohttp.TCPConnector(limit=0)
    limits = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, timeout=limits, read_bufsize=2**20
    ) as session:
        running = [
            asyncio.create_task(
                send(session, args, tokens(args.running_prompt), args.running_answer)
            )
            for _ in range(args.running)
        ]
        await asyncio.sleep(5)
        alone = streams[: args.running]
        decode_only = (time.perf_counter() - 2.5, time.perf_counter())
        for length in args.warm_up:
            await send(session, args, tokens(length), 4)
        streams[args.running :] = []

        start = time.perf_counter()
        sent = []
        for at, prompt in arrivals:
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            sent.append(asyncio.create_task(send(session, args, prompt, args.answer)))
        await asyncio.sleep(max(0.0, start + args.seconds - time.perf_counter()))
        end = time.perf_counter()
        _, late = await asyncio.wait(sent, timeout=20)
        for task in [*running, *late]:
            task.cancel()
        await asyncio.gather(*running, *late, return_exceptions=True)

    prompts = streams[args.running :]
    errors = [s.error for s in streams if s.error]
    gaps = [gap for s in alone for gap in s.gaps(start, end)]
    quiet = [gap for s in alone for gap in s.gaps(*decode_only)]
    answered = [s for s in prompts if s.times]
    return {
        "running": args.running,
        "arriving_per_second": args.rate,
        "prompts_sent": len(prompts),
        "prompts_answered": len(answered),
        "prompt_tokens": sum(s.prompt_tokens for s in prompts),
        "itl_decode_only_ms": summary(quiet),
        "itl_ms": summary(gaps),
        "tokens_of_running_per_second": round(len(gaps) / (end - start), 1),
        "ttft_ms": summary([s.times[0] - s.sent for s in answered]),
        "ttft_of_each_ms": [
            (s.prompt_tokens, round((s.times[0] - s.sent) * 1e3)) for s in answered
        ],
        "errors": errors[:3],
    }


def summary(seconds: list[float]) -> dict:
    ordered = sorted(seconds)
    if not ordered:
        return {}
    quantiles = {
        f"p{q}": ordered[min(len(ordered) - 1, int(q / 100 * len(ordered)))]
        for q in (10, 50, 90, 99)
    }
    values = {"mean": sum(ordered) / len(ordered), **quantiles, "max": ordered[-1]}
    return {name: round(value * 1e3, 2) for name, value in values.items()} | {"n": len(ordered)}


def main() -> None:
    result = asyncio.run(measure(parse_arguments()))
    print(json.dumps(result, indent=1))
    if result["errors"] or result["prompts_answered"] < result["prompts_sent"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
