"""A process that has imported what all servers import, and forks servers from itself.

A server is three processes or more, and importing torch, transformers and SGLang is nine tenths of
what its start costs. Here that is done once. Each process of a server then finds and loads its plugins,
this project's hooks among them, as after its command: they change modules that are imported already.

Protocol: one JSON line a request on standard input, one JSON line an answer on standard output.
``{"start": {"argv", "env", "log", "namespace"}}`` gives the process id, ``{"poll": pid}`` its exit
status or null.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver, resource_tracker, spawn, util
from typing import Any

#: What takes most of a start's time; none of it starts threads of Python's.
LIBRARIES = [
    "torch._dynamo",
    "torch.distributed",
    "torchvision",
    "torchao",
    "transformers.modeling_utils",
    "transformers.generation.candidate_generator",
    "transformers.processing_utils",
    "flashinfer",
    "cutlass",
    "xgrammar",
    "openai",
    "triton",
    "pandas",
    "scipy.stats",
    "fastapi",
    "aiohttp",
    "uvicorn",
    # As a scheduler's process imports them: the platform's operators are in place before the models.
    "sglang.srt.managers.scheduler",
    "sglang.srt.model_executor.model_runner",
    "sglang.srt.models.registry",
    "sglang.srt.entrypoints.http_server",
]
#: Of Linux, ``sched.h``.
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000


def die_with_parent() -> None:
    """A killed test run must not leave a server behind.

    NOTE: the parent is the thread that forked, not the process.
    """
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    die_with_parent()
    sys.path[:0] = python_path(os.environ)
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    gc.freeze()  # the collector would write to pages that the servers share
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                return serve(**request["start"])
            answer = pid
        else:
            answer = exit_status(request["poll"])
        print(json.dumps(answer), flush=True)


def python_path(env: Mapping[str, str]) -> list[str]:
    return [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]


def exit_status(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def serve(argv: list[str], env: dict[str, str], log: str, namespace: str | None) -> None:
    """Become ``python -m argv…``, in a session of its own, and in a network namespace."""
    die_with_parent()
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd, source in enumerate((os.open(os.devnull, os.O_RDONLY), out, out)):
        os.dup2(source, fd)
    if namespace is not None:
        enter(namespace)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [os.getcwd(), *python_path(env)]
    sys.argv[:] = argv
    fork_what_would_be_spawned()
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def enter(namespace: str) -> None:
    """As ``ip netns exec`` does, and with a shared memory of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) or libc.unshare(CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
    subprocess.run(["mount", "--make-rslave", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "shm", "/dev/shm"], check=True)


def fork_what_would_be_spawned() -> None:
    """Let multiprocessing's "spawn" fork from a copy of this process as it is now.

    That copy is the standard library's fork server, also for processes that are forked from it. What a
    spawned process would have besides: its parent's environment, and a parent that hears of its failure
    (SGLang's processes send SIGQUIT).
    """
    server = forkserver._forkserver
    prepare, describe = spawn.prepare, spawn.get_preparation_data
    choose, start = multiprocessing.set_start_method, util.spawnv_passfds

    def describe_with_environment(name: str) -> dict[str, Any]:
        more = {"environ": dict(os.environ), "forked_from": server._forkserver_address}
        return describe(name) | more

    def prepare_with_environment(data: dict[str, Any]) -> None:
        os.environ.clear()
        os.environ.update(data["environ"])
        server._forkserver_address = data["forked_from"]
        server.ensure_running = lambda: None
        prepare(data)

    def fork(_executable: str, _arguments: list[str], fds: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            signal.signal(signal.SIGQUIT, lambda *_: os.kill(os.getppid(), signal.SIGQUIT))
            forkserver.main(*fds, preload=[])
        return pid

    spawn.prepare, spawn.get_preparation_data = prepare_with_environment, describe_with_environment
    multiprocessing.set_start_method = lambda *_, **__: choose("forkserver", force=True)
    multiprocessing.set_forkserver_preload([])
    resource_tracker.ensure_running()
    util.spawnv_passfds = fork
    forkserver.ensure_running()
    util.spawnv_passfds = start


if __name__ == "__main__":
    main()
