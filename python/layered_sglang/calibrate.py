"""Fit the planner's cost model to this machine:
`python -m layered_sglang.calibrate --out FILE -- --model-path MODEL …`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layered_sglang.calibration.errors import CalibrationError
from layered_sglang.calibration.fit import fit, quality
from layered_sglang.calibration.rows import Row, read_rows, split, thin
from layered_sglang.calibration.stored import read_stored
from layered_sglang.calibration.traffic import QUICK, Driver, Grid, Limits
from layered_sglang.local_server import Server, ServerFailed, running_server
from layered_sglang.scheduling import Coefficients, CostModel, ModelShape
from layered_sglang.scheduling.profile import CostProfile

#: Fewer measured iterations than this fit nothing.
LEAST_ROWS = 50
#: Large models load and capture graphs for minutes.
START_SECONDS = 1800
#: Flags that the calibration sets itself.
OWN_FLAGS = ("--layered-trace-file", "--layer-group-policy", "--itl-slo-ms", "--host", "--port")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m layered_sglang.calibrate",
        description="Start a server, measure its iterations under all kinds of load, and fit the "
        "planner's cost model to them. Serve with the result: --cost-profile FILE.",
    )
    parser.add_argument("--out", type=Path, required=True, help="the profile, JSON")
    parser.add_argument("--quick", action="store_true", help="a small grid: a rough fit, sooner")
    parser.add_argument("--trace", type=Path, help="keep the measured iterations in this file")
    parser.add_argument(
        "--from",
        dest="stored",
        type=Path,
        metavar="DIR",
        help="start no server: fit to the iterations in this folder of bench run",
    )
    parser.add_argument(
        "flags",
        nargs=argparse.REMAINDER,
        metavar="-- SERVER FLAGS",
        help="of layered_sglang.launch_server: as you will serve, with --model-path",
    )
    args = parser.parse_args(argv)
    if args.flags[:1] == ["--"]:
        del args.flags[0]
    return args


def calibrate(args: argparse.Namespace, bar: _ProgressBar) -> tuple[CostProfile, Any]:
    """Measure and fit. Returns the profile, and the errors of the figures that it replaces."""
    if not args.out.resolve().parent.is_dir():
        raise CalibrationError(f"--out {args.out}: no such folder")
    if args.stored is not None:
        if args.flags or args.trace:
            raise CalibrationError("--from starts no server; leave --trace and server flags out")
        return _fit(*read_stored(args.stored), args, bar)
    model, flags = _model_path(args.flags)
    grid = QUICK if args.quick else Grid()
    with tempfile.TemporaryDirectory(prefix="layered-calibrate-") as folder:
        trace = Path(folder) / "trace.jsonl"
        flags += ["--layer-group-policy", "slo", "--layered-trace-file", str(trace)]
        log = Path(folder) / "server.log"
        waiting = bar.phase("starting the server")
        command = [sys.executable, "-m", "layered_sglang.launch_server", "--model-path", model]
        with running_server(
            [*command, *flags], log, waiting.seconds, start_seconds=START_SECONDS
        ) as server:
            waiting.end()
            info = _server_info(server)
            lines = _measure(server, info, grid, trace, bar)
    if args.trace:
        args.trace.write_text("".join(lines))
    costs = info["layered_sglang"]["cost_model"]
    rows = read_rows(
        lines, costs["shape"]["num_layers"], costs["overlap"], costs["device"] == "cpu"
    )
    return _fit(costs, rows, args, bar)


def _fit(
    costs: dict[str, Any], rows: list[Row], args: argparse.Namespace, bar: _ProgressBar
) -> tuple[CostProfile, Any]:
    before = cost_model(costs)
    rows = thin(rows)
    if len(rows) < LEAST_ROWS:
        raise CalibrationError(
            f"only {len(rows)} iterations were measured, {LEAST_ROWS} are needed; run it without "
            "--quick, or give the server more KV slots"
        )
    learn, judge = split(rows)
    fitting = bar.phase("fitting")
    coefficients = fit(before, learn, fitting.count)
    after = dataclasses.replace(before, coefficients=coefficients)
    fitting.end()
    profile = CostProfile(
        device=costs["device"],
        model=costs["model"],
        attention=costs["attention"],
        tp_size=costs["tp_size"],
        coefficients=coefficients,
        spread=costs["shape"]["spread"],
        quality={"held_out": quality(after, judge), "fitted_on": len(learn)},
        made={
            "date": time.strftime("%Y-%m-%d"),
            "server_flags": f"bench run {args.stored.name}"
            if args.stored
            else shlex.join(args.flags),
            "quick": args.quick,
            "overlap": costs["overlap"],
        },
    )
    return profile, quality(before, judge)


def cost_model(costs: dict[str, Any]) -> CostModel:
    """The cost model as the server described it."""
    names = ("graph_rows", "decode_graphs", "prefill_graph_rows", "overlap")
    return CostModel(
        ModelShape.from_dict(costs["shape"]),
        Coefficients(**costs["coefficients"]),
        decode_sizes=tuple(costs["decode_sizes"]),
        **{name: costs[name] for name in names},
    )


def _measure(
    server: Server, info: dict[str, Any], grid: Grid, trace: Path, bar: _ProgressBar
) -> list[str]:
    costs = info["layered_sglang"]["cost_model"]
    limits = Limits(
        kv_tokens=int(info["max_total_num_tokens"]),
        max_running=int(info.get("max_running_requests") or 128),
        max_prefill_tokens=int(costs["max_cohort_tokens"]),
        context_length=int(info["max_req_input_len"]),
        vocab_size=int(costs["vocab_size"]),
    )
    driver = Driver(server.url, limits, server.check_alive)
    warming = bar.phase("warming up")
    driver.warm_up(grid)
    warming.end()
    skip = len(trace.read_text().splitlines())
    measuring = bar.phase("measuring")
    driver.run(grid, measuring.share)
    measuring.end()
    return trace.read_text().splitlines(keepends=True)[skip:]


def _server_info(server: Server) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.url}/server_info", timeout=60) as response:
        info: dict[str, Any] = json.load(response)
    if "cost_model" not in info.get("layered_sglang", {}):
        raise CalibrationError(
            "the server does not plan layer groups; leave --prefill-schedule chunked out"
        )
    return info


def _model_path(flags: list[str]) -> tuple[str, list[str]]:
    """The model's path, and the other server flags."""
    rest, model = [], None
    words = iter(flags)
    for word in words:
        name, equals, value = word.partition("=")
        if name in OWN_FLAGS:
            raise CalibrationError(f"{name} is set by the calibration; leave it out")
        if name in ("--model-path", "--model"):
            model = value if equals else next(words, None)
        else:
            rest.append(word)
    if not model:
        raise CalibrationError("no --model-path among the server flags; give them after --")
    return model, rest


class _ProgressBar:
    """What goes on and how far it is, on standard error; one line a phase where it is no terminal."""

    def __init__(self) -> None:
        self._name, self._begun, self._on = "", 0.0, sys.stderr.isatty()

    def phase(self, name: str) -> _ProgressBar:
        self._name, self._begun = name, time.monotonic()
        self._show("")
        return self

    def seconds(self, seconds: float) -> None:
        if self._on:
            self._show(f"{seconds:.0f} s")

    def count(self, evaluations: int) -> None:
        if self._on:
            self._show(f"{evaluations} evaluations")

    def share(self, done: int, total: int) -> None:
        if self._on:
            left = (time.monotonic() - self._begun) / done * (total - done)
            bar = "#" * (30 * done // total)
            self._show(f"[{bar:30}] {done}/{total}, {left:.0f} s left")

    def end(self) -> None:
        self._show(f"done in {time.monotonic() - self._begun:.0f} s")
        if self._on:
            print(file=sys.stderr)

    def _show(self, text: str) -> None:
        end = "" if self._on else "\n"
        begin = "\r\x1b[K" if self._on else ""
        print(f"{begin}{self._name} {text}", end=end, file=sys.stderr, flush=True)


def report(profile: CostProfile, before: dict[str, Any], path: Path) -> str:
    """What the command prints."""
    held_out = profile.quality["held_out"]
    lines = [f"{profile.device}, {profile.model}, attention {profile.attention}: {path}"]
    lines.append(f"errors on {held_out['iterations']} held-out iterations (before the fit):")
    for name, now, then in [
        ("all", held_out, before),
        *((k, v, before["by_kind"][k]) for k, v in held_out["by_kind"].items()),
    ]:
        lines.append(
            f"  {name:8} median {now['median_error']:.1%} ({then['median_error']:.1%})  "
            f"P95 {now['p95_error']:.1%} ({then['p95_error']:.1%})  of {now['iterations']}"
        )
    lines.append(f"serve with: --cost-profile {shlex.quote(str(path))}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 where it cannot be met."""
    args = parse_args(argv)
    try:
        profile, before = calibrate(args, _ProgressBar())
        profile.write(args.out)
    except ServerFailed as error:
        print(f"calibrate: {error}; the end of its log:\n{error.log_end}", file=sys.stderr)
        return 1
    except (CalibrationError, OSError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(report(profile, before, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
