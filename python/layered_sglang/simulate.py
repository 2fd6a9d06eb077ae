"""Compare prefill schedules without a GPU: `python -m layered_sglang.simulate slo:40 fixed mixed:512`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layered_sglang.model_zoo import UnknownPresetError, find_preset
from layered_sglang.scheduling import CostModel, ModelShape
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.scheduling.model_shape import SPREAD_RANDOM, SPREAD_TRAINED
from layered_sglang.scheduling.profile import CostProfile, ProfileError, model_key
from layered_sglang.simulator.errors import SimulationError
from layered_sglang.simulator.plots import plot, require_matplotlib
from layered_sglang.simulator.results import Outcome, table
from layered_sglang.simulator.router import ROUTERS
from layered_sglang.simulator.run import Setup, simulate
from layered_sglang.simulator.systems import KINDS, System
from layered_sglang.simulator.traffic import Traffic, make_traffic
from layered_sglang.simulator.world import check_noise


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    kinds = "\n".join(
        f"  {kind}[:N]".ljust(14) + about + (f" (default {default})" if default else "")
        for kind, (about, default) in KINDS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m layered_sglang.simulate",
        description="Simulate serving with the server's own planner and cost model.",
        epilog=f"systems:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "systems", nargs="*", default=["slo", "fixed", "mixed", "chunked"], metavar="SYSTEM"
    )
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument("--requests", type=int, default=1000)
    traffic.add_argument("--rate", type=float, help="requests a second, over all replicas")
    traffic.add_argument(
        "--arrivals", default="poisson", help="poisson, gamma:CV (bursty above 1), replay"
    )
    distributions = "lognormal:MEDIAN,P90, uniform:LOW,HIGH, const:N, or a mixture W*…+W*…"
    traffic.add_argument("--prompts", default="lognormal:7059,12985", help=distributions)
    traffic.add_argument("--outputs", default="lognormal:208,371", help="likewise")
    traffic.add_argument(
        "--trace", type=Path, help="CSV file with num_prefill_tokens, num_decode_tokens, arrived_at"
    )
    traffic.add_argument(
        "--shared-prefix",
        metavar="GROUPS:TOKENS",
        help="each prompt begins with the tokens of one of the groups",
    )
    traffic.add_argument("--seed", type=int, default=0)
    server = parser.add_argument_group("servers")
    server.add_argument("--model", default="qwen3-30b-a3b", help="a make_model preset")
    server.add_argument("--device", default="H200", help="GPU whose nominal figures are used")
    server.add_argument(
        "--routing",
        choices=("trained", "random"),
        default="trained",
        help="whether rows repeat one another's experts, or choose as dummy weights do",
    )
    server.add_argument("--cost-profile", type=Path, help="fitted figures and routing instead")
    server.add_argument("--replicas", type=int, default=1)
    server.add_argument("--router", choices=ROUTERS, default="round-robin")
    server.add_argument("--kv-tokens", type=int, default=600_000, help="KV slots of a replica")
    server.add_argument("--max-running", type=int, default=256)
    server.add_argument("--max-prefill-tokens", type=int, default=8192)
    server.add_argument("--layer-group-graph-tokens", type=int, default=4096)
    server.add_argument("--prefill-graph-tokens", type=int, default=512)
    server.add_argument(
        "--planner-error",
        metavar="NOISE[,BIAS]",
        help="reality is the model times log-normal noise of this deviation, times the bias",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--ttft-slo-ms", type=float, default=10_000)
    output.add_argument("--itl-slo-ms", type=float, default=50)
    output.add_argument("--short", type=int, metavar="TOKENS", help="also TTFT of shorter prompts")
    output.add_argument("--json", type=Path, metavar="FILE")
    output.add_argument("--plot", type=Path, metavar="FILE", help="needs matplotlib")
    output.add_argument("--processes", type=int, help="all CPUs by default")
    return parser.parse_args(argv)


def make_setup(args: argparse.Namespace) -> Setup:
    """The servers of the command line.

    Raises:
        SimulationError, ProfileError, UnknownPresetError: one line each.
    """
    config = dict(find_preset(args.model).config)
    if args.cost_profile is not None:
        profile = CostProfile.read(args.cost_profile)
        if profile.model != model_key(config):
            raise SimulationError(
                f"{args.cost_profile} is of {profile.model}, --model {args.model} is "
                f"{model_key(config)}; choose the --model that was calibrated"
            )
        coefficients, spread = profile.coefficients, profile.spread
        shape = ModelShape.from_config(config, tp_size=profile.tp_size, spread=spread)
    else:
        coefficients, known = nominal_coefficients(args.device, bool(config.get("kv_lora_rank")))
        if known == "an unknown GPU":
            raise SimulationError(f"--device {args.device}: no data sheet of it; try H200 or H100")
        spread = SPREAD_TRAINED if args.routing == "trained" else SPREAD_RANDOM
        shape = ModelShape.from_config(config, spread=spread)
    noise, bias = 0.0, 1.0
    if args.planner_error:
        try:
            noise, bias = map(float, (args.planner_error + ",1").split(",")[:2])
        except ValueError:
            noise = -1.0
        if not check_noise(noise, bias):
            raise SimulationError(
                f"--planner-error {args.planner_error!r} is no NOISE[,BIAS], such as 0.05,1.1"
            )
    model = CostModel(
        shape,
        coefficients,
        graph_rows=args.layer_group_graph_tokens,
        prefill_graph_rows=args.prefill_graph_tokens,
    )
    return Setup(
        model, args.kv_tokens, args.max_running, args.max_prefill_tokens, noise, bias, args.seed
    )


def read_traffic(args: argparse.Namespace) -> Traffic:
    """The traffic of the command line.

    Raises:
        SimulationError: one line.
    """
    for name in ("requests", "replicas", "max_running", "max_prefill_tokens", "rate", "processes"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise SimulationError(f"--{name.replace('_', '-')} must be positive, got {value}")
    shared = None
    if args.shared_prefix:
        groups, _, tokens = args.shared_prefix.partition(":")
        if not (groups.isdigit() and tokens.isdigit() and int(groups) and int(tokens)):
            raise SimulationError(
                f"--shared-prefix {args.shared_prefix!r} is no GROUPS:TOKENS, such as 20:2000"
            )
        shared = int(groups), int(tokens)
    traffic = make_traffic(
        requests=args.requests,
        rate=args.rate,
        arrival=args.arrivals,
        prompts=args.prompts,
        outputs=args.outputs,
        trace=args.trace,
        shared_prefix=shared,
        seed=args.seed,
    )
    longest = int((traffic.prompt + traffic.output).max())
    if longest > args.kv_tokens:
        raise SimulationError(
            f"a request of {longest} tokens does not fit into --kv-tokens {args.kv_tokens}"
        )
    return traffic


def run(args: argparse.Namespace) -> None:
    if args.plot:
        require_matplotlib()
    systems = [System.parse(text, args.itl_slo_ms) for text in args.systems]
    setup, traffic = make_setup(args), read_traffic(args)
    outcomes: dict[str, Outcome] = {}
    for system in systems:
        bar = _ProgressBar(system.name, len(traffic))
        outcomes[system.name] = simulate(
            system, setup, traffic, args.replicas, args.router, args.processes, bar.show
        )
        bar.close()
    summaries: dict[str, dict[str, Any]] = {
        name: outcome.summary(args.ttft_slo_ms / 1e3, args.itl_slo_ms / 1e3, args.short)
        for name, outcome in outcomes.items()
    }
    figures = "the fitted profile's" if args.cost_profile else f"nominal {args.device}"
    print(
        f"{len(traffic)} requests, {args.replicas} replicas, {args.model}, {figures} figures; "
        "energy by a nominal power model, while busy"
    )
    print(table(summaries, args.short is not None))
    if args.json:
        record = {"arguments": {k: _plain(v) for k, v in vars(args).items()}, "systems": summaries}
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    if args.plot:
        plot(outcomes, args.plot)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class _ProgressBar:
    """On a terminal's standard error; silent elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.begun = name, total, time.monotonic()
        self.on = sys.stderr.isatty()

    def show(self, done: int) -> None:
        if self.on:
            full = 30 * done // self.total
            seconds = time.monotonic() - self.begun
            line = f"\r{self.name:14}[{'#' * full:30}] {done}/{self.total}  {seconds:.0f} s"
            print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.on:
            print(file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 where it cannot be met."""
    args = parse_args(argv)
    try:
        run(args)
    except (SimulationError, ProfileError, UnknownPresetError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nstopped; again: python -m layered_sglang.simulate {_again(argv)}", file=sys.stderr
        )
        return 130
    return 0


def _again(argv: Sequence[str] | None) -> str:
    return shlex.join(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
