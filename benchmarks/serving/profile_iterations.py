"""Where the microseconds of an iteration go: a torch profiler trace of a server in steady state.

Starts one server after the other (layered, stock), lets requests decode, and has SGLang's own profiler
(/start_profile) record the iterations in which a prompt passes. Prints a table for each: the GPU's busy
share and gaps, microseconds by family of kernels, launches by the host. Profiling itself slows the
host. Kept in --log (default $OUT): profile.json, and the traces for Perfetto, without the host's
operators, as profile-NAME.trace.json.gz.

  python benchmarks/serving/profile_iterations.py --seconds 300
  python benchmarks/serving/profile_iterations.py --tiny        tries it on a CPU; there are no kernels
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "server"))
import harness
from harness import Server, free_port, running
from host_time import FLAGS, GPU_FLAGS, RUNNING_PROMPT, VOCABULARY, Client, write_folder
from plugin_folder import python_path
from trace_summary import print_summary, summarise, trimmed

SYSTEMS = {
    "layered": ["layered_sglang.launch_server"],
    "stock": ["sglang.launch_server", "--chunked-prefill-size", "8192"],
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--systems", nargs="+", choices=tuple(SYSTEMS), default=["layered", "stock"])
    add(
        "--seconds", type=float, default=300, help="of everything; start no server that has no time"
    )
    add("--experts", type=int, default=128, help="of each layer of Qwen3-30B-A3B")
    add("--batch", type=int, default=16, help="requests that decode")
    add("--prompt", type=int, default=8000, help="tokens of the prompt that passes")
    add("--steps", type=int, default=40, help="iterations recorded")
    add("--layered", default="", help="more flags of the layered server, in one word")
    add("--stock", default="", help="more flags of the stock server, in one word")
    add("--tiny", action="store_true", help="a tiny model on a CPU, to try this script")
    add("--log", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of what is kept")
    args = parser.parse_args()
    if args.tiny:
        args.batch, args.prompt, args.steps = 2, 600, 12
    return args


def command(name: str, args: argparse.Namespace, model: Path) -> list[str]:
    start = [sys.executable, "-m", *SYSTEMS[name], "--model-path", str(model)]
    flags = [*FLAGS, *(("--dtype", "float32") if args.tiny else GPU_FLAGS)]
    if args.tiny and name == "stock":
        flags += ["--device", "cpu"]
    if not args.tiny:
        flags += ["--cuda-graph-bs-decode", "1", "2", "4", "8", "16", "24", "32"]
    more = args.layered if name == "layered" else args.stock
    return [*start, *flags, *more.split(), "--port", str(free_port())]


async def record(server: Server, args: argparse.Namespace, folder: Path) -> None:
    """Fill ``folder`` with the trace of iterations through which a prompt passes."""
    timeout = aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session:
        client = Client(session, server, 256 if args.tiny else VOCABULARY)
        decode = asyncio.create_task(client.post([RUNNING_PROMPT] * args.batch, 3000, stream=True))
        await asyncio.sleep(1.0)
        for _ in range(2):  # what is left to compile
            await client.post([args.prompt], 2)
        body = {"output_dir": str(folder), "num_steps": args.steps, "activities": ["CPU", "GPU"],
                "with_stack": False, "record_shapes": False}  # fmt: skip
        async with session.post(server.url + "/start_profile", json=body) as response:
            response.raise_for_status()
        await client.post([args.prompt], 2)
        for _ in range(600):
            if read_trace(folder) is not None or decode.done():
                break
            await asyncio.sleep(0.2)
        async with session.post(server.url + "/abort_request", json={"abort_all": True}):
            pass
        await asyncio.gather(decode, return_exceptions=True)


def read_trace(folder: Path) -> dict[str, Any] | None:
    """The trace in ``folder``, or ``None`` as long as it is not complete."""
    for path in folder.glob("*.trace.json.gz"):
        try:
            with gzip.open(path, "rt") as file:
                trace: dict[str, Any] = json.load(file)
            return trace
        except (EOFError, ValueError, OSError, zlib.error):
            return None
    return None


def profile(name: str, args: argparse.Namespace, model: Path) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    with running(command(name, args, model), args.log / f"profile-{name}.log") as server:
        asyncio.run(record(server, args, folder))
        trace = read_trace(folder)
    if trace is None:
        raise RuntimeError("SGLang's profiler wrote no trace")
    with gzip.open(args.log / f"profile-{name}.trace.json.gz", "wt") as file:
        json.dump(trimmed(trace), file)
    return summarise(trace["traceEvents"])


def main() -> None:
    args = parse_arguments()
    end = time.monotonic() + args.seconds
    args.log.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = python_path()
    model = write_folder(args)
    report: dict[str, Any] = {"flags": {k: str(v) for k, v in vars(args).items()}, "problems": []}
    longest = 0.0
    for name in args.systems:
        start = time.monotonic()
        if start + longest > end:
            report["problems"].append(f"{name}: no time left")
            continue
        harness.START_SECONDS = int(end - start)
        try:
            report[name] = profile(name, args, model)
            print_summary(name, report[name])
        except (Exception, asyncio.CancelledError) as error:
            report["problems"].append(f"{name}: {type(error).__name__}: {str(error)[-2000:]}")
        longest = max(longest, time.monotonic() - start)
        (args.log / "profile.json").write_text(json.dumps(report, indent=1))
    print(f"each server took up to {longest:.0f} s")
    (args.log / "profile.json").write_text(json.dumps(report, indent=1))
    sys.exit("\n".join(report["problems"]) or 0)


if __name__ == "__main__":
    main()
