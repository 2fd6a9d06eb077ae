"""Start real servers, send real requests over HTTP, and compare what comes back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import processes
import requests
from layered_sglang import local_server

START_SECONDS = 500
#: What a server of a model that takes images logs where no FFmpeg is.
NO_VIDEO = re.compile(
    r"\[start of libtorchcodec loading traceback\].*?\[end of libtorchcodec loading traceback\]",
    re.DOTALL,
)
#: KV pool of servers without a GPU: nine prompts of 3000 tokens fit. To fill a larger one with zeros, and
#: to give it back, takes longer than the rest of a start.
KV_TOKENS = 32_768


def free_port() -> int:
    """A port that nobody listens on, of this worker's own: between here and the start of a server that
    listens on it the other worker may ask for one, too."""
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
    first, last = local_server.PORTS
    middle = (first + last) // 2
    while True:
        port = local_server.free_port()
        if (port >= middle) == bool(own):
            return port


class ServerDied(AssertionError):
    """The server process ended; the message holds the end of its log."""


@dataclass
class Server:
    """A running server: its address, its process and its log."""

    url: str
    process: subprocess.Popen | processes.WarmProcess
    log: Path

    def log_end(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise ServerDied(f"server exited with {self.process.returncode}\n{self.log_end()}")

    def expect_logged(self, text: str, seconds: float = 60) -> None:
        """What a server says of itself may follow its first answer."""
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text(errors="replace"):
            assert time.monotonic() < deadline, f"no '{text}'\n{self.log_end()}"
            time.sleep(0.05)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=60)

    def post(self, path: str, **body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=300)

    def wait_idle(self, seconds: float = 120) -> None:
        """Wait until nothing runs and nothing is held: ``/flush_cache`` refuses before that."""
        deadline = time.monotonic() + seconds
        while True:
            self.check_alive()
            if self.post("/flush_cache").status_code == 200:
                return
            assert time.monotonic() < deadline, f"never idle\n{self.log_end()}"
            time.sleep(0.1)

    def held_tokens(self, seconds: float = 60) -> int:
        """KV slots in use, over all schedulers. What they publish may be older than the last request, so
        it is asked for until it is 0, or ``seconds`` have passed."""
        deadline = time.monotonic() + seconds
        while True:
            loads = self.get("/v1/loads").json()["loads"]
            held = sum(load["num_used_tokens"] for load in loads)
            if held == 0 or time.monotonic() > deadline:
                return held
            time.sleep(0.05)

    def counters(self) -> dict[str, float]:
        """Our Prometheus counters by name, 0 if never counted; iterations as ``iterations:<kind>``."""
        values: dict[str, float] = defaultdict(float)
        for line in self.get("/metrics").text.splitlines():
            if not line.startswith("layered_sglang:") or "_created" in line:
                continue
            name, value = line.split("{")[0], float(line.rsplit(" ", 1)[1])
            name = name.removeprefix("layered_sglang:").removesuffix("_total")
            if 'kind="' in line:
                name += ":" + line.split('kind="')[1].split('"')[0]
            values[name] += value
        return values


def layered_command(model: Path | str, port: int, *flags: str) -> list[str]:
    return [sys.executable, "-m", "layered_sglang.launch_server", *_common(model, port), *flags]


def stock_command(model: Path | str, port: int, *flags: str) -> list[str]:
    """SGLang's own launcher. Only the platform is ours, where there is no GPU."""
    import torch

    cpu = [] if torch.cuda.is_available() else ["--device", "cpu"]
    return [sys.executable, "-m", "sglang.launch_server", *_common(model, port), *cpu, *flags]


def _common(model: Path | str, port: int) -> list[str]:
    import torch

    # An idle scheduler would spin, on a core that the other worker's server needs.
    flags = ["--dtype", "float32", "--sleep-on-idle"]
    if not torch.cuda.is_available():
        # SGLang's own warm-up waits for a second before its request.
        flags += ["--max-total-tokens", str(KV_TOKENS), "--skip-server-warmup"]
    return ["--model-path", str(model), "--port", str(port), *flags]


def start(
    command: list[str],
    log: Path,
    env: dict[str, str] | None,
    network_namespace: str | None = None,
) -> subprocess.Popen | processes.WarmProcess:
    """Start a server and return at once."""
    import torch

    full_env = {**os.environ, **processes.STRICT, **(env or {})}
    if "sglang.launch_server" in command and not torch.cuda.is_available():
        full_env["SGLANG_PLATFORM"] = "layered_sglang_cpu"
    return processes.start(command, full_env, log, network_namespace)


def failed_start(command: list[str], log: Path, env: dict[str, str] | None = None) -> list[str]:
    """The lines of error of a server that has to end by itself, with a status that is not 0."""
    process = start(command, log, env)
    try:
        status = process.wait(START_SECONDS)
    finally:
        processes.stop(process)
    text = log.read_text(errors="replace")
    assert status != 0, text
    return [line for line in text.splitlines() if line.startswith("layered-sglang: error:")]


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a server until the block ends; it must still be alive and its log clean of leaks then."""
    process = start(command, log, env)
    port = command[command.index("--port") + 1]
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_ready(server)
        yield server
        server.check_alive()
        text = log.read_text(errors="replace")
        assert "leak" not in text.lower(), f"memory leak reported\n{server.log_end()}"
        assert "Traceback" not in NO_VIDEO.sub("", text), (
            f"an exception was logged\n{server.log_end(80)}"
        )
    finally:
        processes.stop(process)


def _wait_ready(server: Server) -> None:
    """Until it answers, and its warm-up, where it has one, is over."""
    deadline = time.monotonic() + START_SECONDS
    ready = False
    while not ready:
        server.check_alive()
        assert time.monotonic() < deadline, f"not ready in time\n{server.log_end()}"
        time.sleep(0.05)
        if "ready to roll" in server.log.read_text(errors="replace"):
            with suppress(requests.RequestException):
                ready = requests.get(server.url + "/model_info", timeout=5).status_code == 200


@dataclass(frozen=True)
class Request:
    """One ``/generate`` request; greedy unless ``sampling`` says otherwise.

    ``logprob_start`` −1 asks for output logprobs only, 0 for the whole prompt's too. ``images``: as data
    URLs, for the image tokens of the prompt. ``more``: other fields of the body.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: tuple[tuple[str, Any], ...] = ()
    stream: bool = False
    logprob_start: int = -1
    priority: int | None = None
    images: tuple[str, ...] = ()
    more: tuple[tuple[str, Any], ...] = ()

    def body(self, rid: str | list[str] | None) -> dict[str, Any]:
        params = {"temperature": 0.0, "max_new_tokens": self.max_new_tokens, **dict(self.sampling)}
        body: dict[str, Any] = {
            "input_ids": list(self.prompt),
            "sampling_params": params,
            "return_logprob": True,
            "logprob_start_len": self.logprob_start,
            "stream": self.stream,
            **dict(self.more),
        }
        if rid is not None:
            body["rid"] = rid
        if self.priority is not None:
            body["priority"] = self.priority
        if self.images:
            body["image_data"] = list(self.images)
        return body


@dataclass
class Answer:
    """What one sequence of a request got."""

    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float | None]
    finish: str
    top_logprobs: list[float] = field(
        default_factory=list
    )  # of output, then prompt tokens, in a row
    text: str = ""
    cached: int = 0  # tokens of the prompt that the radix cache had
    from_host: int = 0  # of these, those that came back from the host
    drafts: int = 0  # chains of a draft model's tokens that were verified
    times: list[float] = field(default_factory=list)


def answer_of(out: dict[str, Any]) -> Answer:
    meta = out["meta_info"]
    reason = meta["finish_reason"] or {"type": "none"}
    # A request aborted in the grammar queue: SGLang runs one token in its prompt's place, and what
    # that gives is no part of the answer.
    stand_in = reason["type"] == "abort" and reason.get("status_code") == 400
    return Answer(
        tokens=[] if stand_in else list(out.get("output_ids") or []),
        logprobs=[row[0] for row in meta.get("output_token_logprobs") or []],
        prompt_logprobs=[row[0] for row in meta.get("input_token_logprobs") or []],
        finish=reason["type"],
        top_logprobs=[
            logprob
            for name in ("output_top_logprobs", "input_top_logprobs")
            for token in meta.get(name) or []
            for logprob, *_ in token or []
        ],
        text=out.get("text", ""),
        cached=meta.get("cached_tokens") or 0,
        from_host=(meta.get("cached_tokens_details") or {}).get("host", 0),
        drafts=meta.get("spec_verify_ct") or 0,
    )


async def generate(
    session: aiohttp.ClientSession,
    server: Server,
    request: Request,
    rid: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Send one request; one answer per sequence (``n``). Streams tell ``progress`` their length."""
    async with session.post(server.url + "/generate", json=request.body(rid)) as response:
        if response.status != 200:
            text = await response.text()
            # An abort that finds the request in the grammar queue, or not even there yet, is answered by
            # an error.
            found = response.status == 400 and "Aborted by AbortReq" in text
            aborted = found or response.status == 499
            return [Answer([], [], [], "abort" if aborted else f"http {response.status}: {text}")]
        if not request.stream:
            out = await response.json()
            return [answer_of(o) for o in (out if isinstance(out, list) else [out])]
        last: dict[int, dict] = {}
        times = []
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("error", {}).get("code") == 499:
                return [Answer([], [], [], "abort")]
            assert "error" not in chunk, chunk
            last[chunk.get("index", 0)] = chunk
            if progress is not None:
                progress(chunk["meta_info"]["completion_tokens"])
            times.append(time.perf_counter())
        answers = [answer_of(last[i]) for i in sorted(last)]
        for answer in answers:
            answer.times = times
        return answers


async def generate_all(
    server: Server, requests_: list[Request], at_once: int = 8
) -> list[list[Answer]]:
    """Answers to ``requests_``, ``at_once`` at a time, in order."""
    gate = asyncio.Semaphore(at_once)
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def one(request: Request) -> list[Answer]:
            async with gate:
                return await generate(session, server, request)

        return await asyncio.gather(*map(one, requests_))


def difference(got: Answer, want: Answer, tolerance: float = 1e-4) -> str | None:
    """What differs between an answer and the reference, or ``None``."""
    if got.finish != want.finish:
        return f"finish {got.finish} instead of {want.finish}"
    if got.tokens != want.tokens:
        at = next(
            (i for i, (a, b) in enumerate(zip(got.tokens, want.tokens, strict=False)) if a != b),
            min(len(got.tokens), len(want.tokens)),
        )
        return f"token {at}: {got.tokens[at : at + 3]} instead of {want.tokens[at : at + 3]}"
    for name in ("logprobs", "prompt_logprobs", "top_logprobs"):
        a, b = getattr(got, name), getattr(want, name)
        if len(a) != len(b):
            return f"{len(a)} {name} instead of {len(b)}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if (x is None) != (y is None) or (x is not None and abs(x - y) > tolerance):
                return f"{name}[{i}]: {x} instead of {y}"
    return None
