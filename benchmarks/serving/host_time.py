"""Host time of an iteration by part, and ITL with no prompt waiting: layered against stock SGLang.

Starts both servers at once on this machine's GPU: Qwen3-30B-A3B's layers with fewer experts (--experts),
so that two fit; the host does the same for them, and iterations are shorter, so it shows more. Both
compute the experts with SGLang's kernels: only the schedule differs. First the servers take turns at
decoding with no prompt waiting (ITL), then the clock of host_clock.py is switched on, and each decodes
while prompts come. Prints one table; the figures go to --report (default: $OUT/host_time.json).

  python benchmarks/serving/host_time.py --seconds 420
  python benchmarks/serving/host_time.py --tiny --seconds 300     tries the script without a GPU
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "server"))
import harness
from harness import Server, free_port, running
from host_clock import FOLDER, START
from host_time_table import Turn, by_kind, print_report
from layered_sglang.model_zoo import find_preset, write_model
from layered_sglang.model_zoo.presets import Preset
from plugin_folder import python_path

FLAGS = (
    *("--skip-tokenizer-init", "--incremental-streaming-output", "--disable-radix-cache"),
    *("--max-total-tokens", "80000", "--sleep-on-idle"),
)
GPU_FLAGS = (
    *("--load-format", "dummy", "--dtype", "bfloat16", "--attention-backend", "fa3"),
    *("--disable-prefill-cuda-graph", "--mem-fraction-static", "0.8", "--moe-runner-backend", "triton"),
)  # fmt: skip
LAYERED_FLAGS = ("--moe-kernels", "sglang")
STOCK_FLAGS = ("--chunked-prefill-size", "8192")
RUNNING_PROMPT = 64
VOCABULARY = 100_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=420, help="of everything, the servers' start included")
    add("--experts", type=int, default=32, help="of each layer")
    add("--batches", type=int, nargs="+", default=[1, 8, 32, 128], help="decode batches, ITL")
    add("--host-batches", type=int, nargs="+", default=[1, 8, 32], help="the same, host time")
    add("--tokens", type=int, nargs=2, default=[64, 320], help="ITL: from this token to that one")
    add("--repeats", type=int, default=5, help="of each ITL; the servers take turns")
    add("--prompts", type=int, nargs="+", default=[300, 2000, 8000], help="tokens, host time")
    add("--running-tokens", type=int, default=700, help="decoded while the prompts come")
    add("--tiny", action="store_true", help="a tiny model on a CPU, to try this script")
    add("--layered", default="", help="more flags of the layered server, in one word")
    add("--stock", default="", help="more flags of the stock server, in one word")
    add("--log", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of logs")
    add("--report", type=Path, help="default: host_time.json in --log")
    args = parser.parse_args()
    if min(args.batches + args.host_batches + args.prompts + args.tokens) < 1:
        parser.error("batches, prompts and tokens must be at least 1")
    args.report = args.report or args.log / "host_time.json"
    if args.tiny:
        args.batches, args.host_batches = [1, 4], [2]
        args.tokens, args.running_tokens, args.repeats = [4, 24], 150, 2
        args.prompts = [100, 300]
    return args


# --- the servers --------------------------------------------------------------------------------------


def write_folder(args: argparse.Namespace) -> Path:
    folder = Path(tempfile.mkdtemp()) / "model"
    if args.tiny:
        write_model(find_preset("tiny"), folder)
    else:
        config = {**find_preset("qwen3-30b-a3b").config, "num_experts": args.experts}
        write_model(Preset("qwen3-fewer-experts", "", config, False), folder)
    return folder


def commands(args: argparse.Namespace, model: Path) -> dict[str, list[str]]:
    """The command of each server, without its port."""
    flags = [*FLAGS, *(("--dtype", "float32") if args.tiny else GPU_FLAGS)]
    if not args.tiny:
        flags += ["--cuda-graph-bs-decode", *map(str, sorted({*args.batches, *args.host_batches}))]
    device = ["--device", "cpu"] if args.tiny else []
    starts = {
        "stock": ["sglang.launch_server", *device, *STOCK_FLAGS, *args.stock.split()],
        "layered": ["layered_sglang.launch_server", *LAYERED_FLAGS, *args.layered.split()],
    }
    return {
        name: [sys.executable, "-m", *start, "--model-path", str(model), *flags]
        for name, start in starts.items()
    }


@contextlib.contextmanager
def servers(
    commands: dict[str, list[str]], log: Path, environments: dict[str, dict[str, str]]
) -> Iterator[dict[str, Server]]:
    """All of them, started side by side. A server dies with the thread that started it: they stay.

    Args:
        commands: by name, without a port.
        log: their logs' names without ``-NAME.log``.
        environments: by name.
    """
    contexts = {
        name: running(
            [*command, "--port", str(free_port())],
            log.with_name(f"{log.name}-{name}.log"),
            environments.get(name),
        )
        for name, command in commands.items()
    }
    pool, stack = ThreadPoolExecutor(), contextlib.ExitStack()
    starts = {name: pool.submit(context.__enter__) for name, context in contexts.items()}
    failures = {name: start.exception() for name, start in starts.items()}
    try:
        for name, failure in failures.items():
            if failure is None:
                stack.push(contexts[name])
        for name, failure in failures.items():
            if failure is not None:
                raise RuntimeError(f"the {name} server did not start: {failure}") from failure
        yield {name: start.result() for name, start in starts.items()}
    finally:
        stack.close()


# --- what is asked of them ----------------------------------------------------------------------------


def prompt(length: int, rng: random.Random, vocabulary: int) -> list[int]:
    return [rng.randrange(vocabulary) for _ in range(length)]


class Client:
    """Requests to one server."""

    def __init__(self, session: aiohttp.ClientSession, server: Server, vocabulary: int) -> None:
        self.session, self.server, self.vocabulary = session, server, vocabulary
        self.rng = random.Random(7)

    async def post(self, prompts: list[int], answer: int, stream: bool = False) -> list[bytes]:
        """Send prompts of these lengths in one request and read the answer to its end."""
        return [line async for _, line in self.lines(prompts, answer, stream)]

    async def lines(
        self, prompts: list[int], answer: int, stream: bool
    ) -> AsyncIterator[tuple[float, bytes]]:
        """The answer's lines, and the seconds at which they came."""
        if not prompts:
            return
        rows = [prompt(length, self.rng, self.vocabulary) for length in prompts]
        body = {
            "input_ids": rows,
            "sampling_params": {"temperature": 0, "max_new_tokens": answer, "ignore_eos": True},
            "stream": stream,
        }
        async with self.session.post(self.server.url + "/generate", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                yield time.perf_counter(), line


async def itl(client: Client, batch: int, tokens: tuple[int, int]) -> float:
    """Milliseconds a token of one request, from its token tokens[0] to tokens[1], while the others of
    the batch decode, too. Only that one streams: a client cannot keep up with 128 streams."""
    longer = tokens[1] + max(16, tokens[0] // 2)
    others = asyncio.create_task(client.post([RUNNING_PROMPT] * (batch - 1), longer))
    times: list[tuple[int, float]] = []
    async for now, line in client.lines([RUNNING_PROMPT], tokens[1], True):
        if line.startswith(b"data: {"):
            answer = json.loads(line[6:])
            times.append((answer["meta_info"]["completion_tokens"], now))
    still_running = batch == 1 or not others.done()
    await others
    (first, begin), (last, end) = next(t for t in times if t[0] >= tokens[0]), times[-1]
    if not still_running:
        raise RuntimeError(f"batch {batch}: the other requests ended too early")
    return (end - begin) / (last - first) * 1e3


async def compare_itl(
    clients: dict[str, Client],
    args: argparse.Namespace,
    until: float,
    runs: dict[int, dict[str, list[float]]],
) -> None:
    """By batch and server, one value a repeat; the servers take turns, each begins every other time."""
    runs |= {batch: {name: [] for name in clients} for batch in args.batches}
    for repeat in range(args.repeats):
        for batch in args.batches:
            if repeat > 1 and time.monotonic() > until:
                return
            for name in sorted(clients, reverse=bool(repeat % 2)):
                runs[batch][name].append(await itl(clients[name], batch, args.tokens))


async def with_prompts(client: Client, batch: int, args: argparse.Namespace) -> None:
    """`batch` requests decode and stream; in the middle of it prompts come, one after the other."""
    decode = asyncio.create_task(
        client.post([RUNNING_PROMPT] * batch, args.running_tokens, stream=True)
    )
    await asyncio.sleep(0.3 if args.tiny else 1.0)
    for _ in range(2):
        for length in args.prompts:
            if decode.done():
                return
            await client.post([length], 2)
    await decode


async def measure(
    started: dict[str, Server],
    clocks: dict[str, Path],
    args: argparse.Namespace,
    end: float,
    report: dict[str, Any],
) -> None:
    """Fills ``report``, figure by figure, so that what was measured is kept where more fails."""
    timeout = aiohttp.ClientTimeout(total=max(30.0, end - time.monotonic()))
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session:
        vocabulary = 256 if args.tiny else VOCABULARY
        clients = {name: Client(session, s, vocabulary) for name, s in started.items()}
        for client in clients.values():  # compiles what is left to compile, with every batch size
            for batch in sorted({*args.batches, *args.host_batches}):
                await client.post([RUNNING_PROMPT] * batch, 4)
            await with_prompts(client, 2, args)
        now = time.monotonic()
        await compare_itl(clients, args, now + 0.6 * (end - now), report["itl_ms"])
        for name, client in clients.items():
            report["host"][name] = await measure_host(client, clocks[name], args, end)


async def measure_host(
    client: Client, folder: Path, args: argparse.Namespace, end: float
) -> dict[str, Any]:
    (folder / START).touch()
    await client.post([RUNNING_PROMPT], 2)  # idle again after it, with the clock on
    await idle(folder)
    result: dict[str, Any] = {"cost_of_a_change_ns": clock_cost(folder), "batches": {}}
    seen = len(turns(folder))
    for batch in args.host_batches:
        if result["batches"] and time.monotonic() > end - 15:
            break
        await with_prompts(client, batch, args)
        await idle(folder)
        all_turns = turns(folder)
        result["batches"][batch] = by_kind(all_turns[seen:], batch)
        seen = len(all_turns)
    return result


async def idle(folder: Path) -> None:
    """The server writes what it noted when it is idle: until nothing more comes."""
    size, deadline = -1, time.monotonic() + 10
    while time.monotonic() < deadline:
        await asyncio.sleep(0.7)
        files = list(folder.glob("turns-*.jsonl"))
        now = sum(file.stat().st_size for file in files)
        if files and now == size:
            return
        size = now


def turns(folder: Path) -> list[Turn]:
    lines = [line for f in sorted(folder.glob("turns-*.jsonl")) for line in f.open()]
    return [json.loads(line) for line in lines]


def clock_cost(folder: Path) -> float:
    files = list(folder.glob("clock-*.json"))
    if not files:
        raise RuntimeError("the clock did not start: is host_clock's plugin in the server's log?")
    return float(json.loads(files[0].read_text())["cost_of_a_change_ns"])


def main() -> None:
    args = parse_arguments()
    end = time.monotonic() + args.seconds
    harness.START_SECONDS = int(args.seconds * 0.7)
    os.environ["PYTHONPATH"] = python_path("host_clock")
    clocks = {name: Path(tempfile.mkdtemp()) for name in ("stock", "layered")}
    args.log.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    report: dict[str, Any] = {"itl_ms": {}, "host": {}, "problem": None}
    report["flags"] = {name: str(value) for name, value in vars(args).items()}
    try:
        environments = {name: {FOLDER: str(folder)} for name, folder in clocks.items()}
        with servers(commands(args, write_folder(args)), args.log / "host_time", environments) as (
            started
        ):
            report["start_seconds"] = round(time.monotonic() - begin, 1)
            asyncio.run(measure(started, clocks, args, end - 10, report))
    except (Exception, asyncio.CancelledError) as error:
        report["problem"] = f"{type(error).__name__}: {str(error)[-3000:]}"
    report["seconds"] = round(time.monotonic() - begin, 1)
    args.report.write_text(json.dumps(report, indent=1))
    print_report(report)
    sys.exit(report["problem"])


if __name__ == "__main__":
    main()
