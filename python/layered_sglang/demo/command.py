"""The command: makes the model, runs each system in turn, prints the table."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from layered_sglang.demo.drawing import legend
from layered_sglang.demo.scenario import SYSTEMS, System
from layered_sglang.demo.show import run_and_draw
from layered_sglang.demo.summary import Measured, remarks, table
from layered_sglang.demo.traffic import TrafficError
from layered_sglang.local_server import ServerFailed, running_server
from layered_sglang.model_zoo import FolderError, find_preset, write_model
from layered_sglang.terminal import Screen, Style, style_for

PRESET = "tiny"
#: Seconds between two progress lines where a line cannot be written over.
PROGRESS_SECONDS = 5
#: Load average per core from which the times are called rough.
BUSY_LOAD = 0.5


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m layered_sglang.demo",
        description="Serve a tiny model under three prefill schedules, stream a chat while long "
        "prompts arrive, and draw which layers each iteration ran for whom.",
    )
    parser.add_argument(
        "--only", choices=[s.name for s in SYSTEMS], help="run one of the schedules"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep model, logs and traces in this new folder"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 1 when a server failed, 2 on a bad folder, 130 when interrupted."""
    args = parse_args(argv)
    # However the demo is ended, its servers end too; a shell's background job ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    screen = Screen()
    try:
        with ExitStack() as stack:
            folder = args.keep or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="layered-sglang-demo-"))
            )
            _demo(folder, [s for s in SYSTEMS if args.only in (None, s.name)], screen)
    except ServerFailed as failure:
        screen.clear()
        print(f"demo: {failure}; the end of its log:\n{failure.log_end}", file=sys.stderr)
        return 1
    except FolderError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        screen.clear()
        print("demo: interrupted; its servers are stopped", file=sys.stderr)
        return 130
    return 0


def _demo(folder: Path, systems: Sequence[System], screen: Screen) -> None:
    preset = find_preset(PRESET)
    model = write_model(preset, folder / "model").directory
    num_layers = preset.config["num_hidden_layers"]
    on_gpu = _gpu_present()
    # Before our own servers make it so.
    busy = os.getloadavg()[0] > BUSY_LOAD * (os.cpu_count() or 1)
    style = style_for(sys.stdout)
    screen.line(f"model: {preset.summary}, random weights; device: {'GPU' if on_gpu else 'CPU'}")
    for line in legend(style):
        screen.line(line)
    runs = []
    for system in systems:
        screen.line()
        screen.line(style.paint(f"{system.title}: {system.about}", "1"))
        runs.append(_run(system, model, folder, num_layers, on_gpu, screen, style))
    screen.line()
    for line in (*table(runs), "", *remarks(runs, on_gpu, busy)):
        screen.line(line)


def _run(
    system: System,
    model: Path,
    folder: Path,
    num_layers: int,
    on_gpu: bool,
    screen: Screen,
    style: Style,
) -> Measured:
    """Start the system's server, measure and draw it, stop it."""
    trace = folder / f"{system.name}.jsonl"
    log = folder / f"{system.name}.log"
    # Not every attention kernel of a GPU takes float32.
    flags = ("--dtype", "bfloat16" if on_gpu else "float32", "--layered-trace-file", str(trace))
    command = (sys.executable, "-m", "layered_sglang.launch_server", "--model-path", str(model))
    progress = _starting(system, screen)
    with running_server((*command, *system.flags, *flags), log, progress) as server:
        screen.clear()
        try:
            return asyncio.run(run_and_draw(system.title, server, trace, num_layers, screen, style))
        except (TrafficError, OSError, TimeoutError) as error:
            server.check_alive()
            raise server.failed(str(error) or type(error).__name__) from error
        finally:
            screen.show("stopping the server")


def _starting(system: System, screen: Screen) -> Callable[[float], None]:
    """The progress report of a server's start."""
    started = time.monotonic()
    reported = -PROGRESS_SECONDS

    def progress(seconds: float) -> None:
        nonlocal reported
        text = (
            f"starting the server ({system.name}), about 20 s on an idle machine: {seconds:.0f} s"
        )
        if screen.live:
            screen.show(text)
        elif time.monotonic() - started >= reported + PROGRESS_SECONDS:
            reported += PROGRESS_SECONDS
            screen.line(text)

    return progress


def _gpu_present() -> bool:
    import torch

    return torch.cuda.is_available()
