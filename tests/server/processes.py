"""Server processes: started warm where that is possible, watched, and ended with all their children."""

from __future__ import annotations

import functools
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from warm_start import die_with_parent

#: SGLang's memory checks: on, and fatal.
STRICT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads of several processes that spin for one another's cores cost more than they give.
    "OMP_NUM_THREADS": "1",
}
#: How SGLang is imported before servers are forked.
IMPORTED_WITH = {**STRICT, "SGLANG_PLATFORM": "layered_sglang_cpu"}
#: What SGLang reads of its environment when it uses it; other variables may count while it is imported.
READ_LATE = {
    "SGLANG_CHUNKED_PREFIX_CACHE_THRESHOLD",
    "SGLANG_HOST_IP",
    "SGLANG_PLATFORM",
    "SGLANG_PLUGINS",
    "SGLANG_REQ_RUNNING_TIMEOUT",
}


#: One question and its answer at a time: servers are started and ended on several threads.
_ASKING = threading.RLock()


class WarmProcess:
    """A server forked by ``warm_start.py``, with the part of ``subprocess.Popen`` that tests use."""

    def __init__(
        self, args: list[str], env: dict[str, str], log: Path, namespace: str | None
    ) -> None:
        self.args = args
        self.returncode: int | None = None
        with _ASKING:
            self._starter = _starter()
        log.write_bytes(b"")  # it is read before a busy machine lets the server open it
        argv = args[args.index("-m") + 1 :]
        start = {"argv": argv, "env": env, "log": str(log), "namespace": namespace}
        self.pid = _ask(self._starter, start=start)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(self._starter, poll=self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode


@functools.cache
def _starter() -> subprocess.Popen:
    """This test run's ``warm_start.py``; it ends with the run, and its servers with it."""
    script = Path(__file__).with_name("warm_start.py")
    return subprocess.Popen(
        [sys.executable, "-I", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **IMPORTED_WITH},
    )


def _ask(starter: subprocess.Popen, **request: Any) -> Any:
    assert starter.stdin is not None and starter.stdout is not None
    with _ASKING:
        starter.stdin.write(json.dumps(request) + "\n")
        starter.stdin.flush()
        return json.loads(starter.stdout.readline())


def imported_alike(env: dict[str, str]) -> bool:
    """Whether SGLang, imported with ``env``, is what ``warm_start.py`` has imported."""
    forked_with = {**os.environ, **IMPORTED_WITH}
    differing = {name for name in {*env, *forked_with} if env.get(name) != forked_with.get(name)}
    return not {name for name in differing if name.startswith("SGLANG_")} - READ_LATE


def start(
    args: list[str],
    env: dict[str, str],
    log: Path,
    network_namespace: str | None = None,
) -> subprocess.Popen | WarmProcess:
    """Start a server's command with its output in ``log``.

    Where there is a GPU, as a user would: a CUDA context does not survive a fork. So, too, with an
    environment that SGLang may look at while it is imported.
    """
    import torch

    if imported_alike(env) and not torch.cuda.is_available():
        log.write_text("")  # who reads it may be faster than who was forked
        return WarmProcess(args, env, log, network_namespace)
    if network_namespace is not None:
        # With a shared memory of its own, by which SGLang tells whether ranks are on one node.
        apart = 'mount -t tmpfs shm /dev/shm && exec "$@"'
        args = ["ip", "netns", "exec", network_namespace, "sh", "-c", apart, "sh", *args]
    with open(log, "w") as out:
        return subprocess.Popen(
            args,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def popen(command: Sequence[str], *, stdout: Any, env: dict[str, str], **_how: Any) -> Any:
    """``subprocess.Popen`` for ``local_server``, which starts the servers of this package's commands."""
    return start(list(command), {**env, **STRICT}, Path(stdout.name))


def stop(process: subprocess.Popen | WarmProcess) -> None:
    """End the server and every process it started, also those that left its process group."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
    except psutil.NoSuchProcess:
        return
    ends = []
    for member in family:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            member.kill()
            ends.append(os.pidfd_open(member.pid))
    # Not until they are reaped: the machine's first process may do that every two seconds.
    deadline = time.monotonic() + 60
    for end in ends:
        select.select([end], [], [], max(0, deadline - time.monotonic()))
        os.close(end)
    process.wait(60)
