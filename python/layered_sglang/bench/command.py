"""The commands ``bench run`` and ``bench report``."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from layered_sglang.bench.console import Console
from layered_sglang.bench.report.write import write_picture, write_report, write_tables
from layered_sglang.bench.running.session import Session
from layered_sglang.bench.spec.cells import in_repeat
from layered_sglang.bench.spec.located import ScenarioError
from layered_sglang.bench.spec.scenario import Scenario, find_scenario, load_scenario
from layered_sglang.bench.store import Store, StoreError
from layered_sglang.bench.summary import summarise
from layered_sglang.bench.table import as_text, points, table


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m layered_sglang.bench",
        description="Send the same traffic to several serving systems and compare what they make of it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a scenario, or go on with one that was cut off")
    add = run.add_argument
    add("scenario", metavar="SCENARIO", help="a YAML file, or a scenario of the package (quick)")
    add("--output", type=Path, metavar="DIR", help="for results (default bench-NAME-TIME)")
    add(
        *("--set", "-s"),
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help="another value for a key of the scenario; may be given several times",
    )
    add("--only", metavar="NAME,NAME", help="run these of its systems")
    add("--repeat", type=int, metavar="N", help="run this one of its repeats; the first is 1")
    add("--time-limit", type=float, metavar="S", help="stop cleanly after this many seconds")
    report = commands.add_parser("report", help="write report.html, report.md and pictures")
    report.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="results of bench run; the first of several, all of one scenario, gets the report",
    )
    report.add_argument(
        "--picture",
        nargs=2,
        metavar=("NAME", "FILE"),
        help="write this picture alone, as SVG or PNG by the file's name",
    )
    report.add_argument(
        "--tables",
        type=Path,
        metavar="FILE",
        help="write its tables over all cells alone, as Markdown",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when all was measured, 1 when a system failed or time was up, 2 on a bad scenario or
        folder, 130 when interrupted.
    """
    args = parse_args(argv)
    if args.command == "report":
        return _report(args.folders, args.picture, args.tables)
    # However the run is ended, its servers end too; a shell's background job ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return _run(args, ["python", "-m", "layered_sglang.bench", *(argv or sys.argv[1:])])
    except (ScenarioError, StoreError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace, command: Sequence[str]) -> int:
    started = time.monotonic()
    path = find_scenario(args.scenario)
    scenario = load_scenario(path, args.overrides)
    chosen = _one_repeat(_only(scenario, args.only), args.repeat)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    store = Store(args.output or Path(f"bench-{scenario.name}-{stamp}"))
    store.open(scenario, path, shlex.join(command))
    console = Console()
    about = f": {scenario.about}" if scenario.about else ""
    console.line(f"{scenario.name}{about}; results in {store.folder}")
    deadline = started + args.time_limit if args.time_limit else float("inf")
    status = 0
    with tempfile.TemporaryDirectory(prefix="layered-sglang-bench-") as scratch:
        try:
            complete = Session(chosen, store, Path(scratch), deadline, console).run()
            status = 0 if complete else 1
        except KeyboardInterrupt:
            console.line("interrupted; the servers are stopped, what was measured is kept")
            status = 130
    console.clear()
    _print_summary(scenario, store, console)
    return status


def _report(folders: Sequence[Path], picture: Sequence[str] | None, to: Path | None) -> int:
    written: list[Path] = []
    try:
        if picture:
            write_picture(folders, picture[0], Path(picture[1]))
            written.append(Path(picture[1]))
        if to is not None:
            write_tables(folders, to)
            written.append(to)
        if not written:
            written = write_report(folders)
    except StoreError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {path}")
    return 0


def _only(scenario: Scenario, names: str | None) -> Scenario:
    if names is None:
        return scenario
    wanted = names.split(",")
    known = [system.name for system in scenario.systems]
    for name in wanted:
        if name not in known:
            raise ScenarioError(f"--only {name}: no such system; there are: {', '.join(known)}")
    searches = [
        replace(search, systems=tuple(name for name in search.systems if name in wanted))
        for search in scenario.searches
    ]
    cells = tuple(cell for cell in scenario.cells if cell.system in wanted)
    return replace(scenario, cells=cells, searches=tuple(searches))


def _one_repeat(scenario: Scenario, number: int | None) -> Scenario:
    """The scenario with what is run in its repeat ``number``, which counts from 1."""
    if number is None:
        return scenario
    if not 1 <= number <= scenario.repeats:
        raise ScenarioError(f"--repeat {number}: there are {scenario.repeats}, the first is 1")
    repeat = number - 1
    return replace(
        scenario,
        cells=tuple(
            replace(cell, only_repeats=(repeat,))
            for cell in scenario.cells
            if in_repeat(cell.only_repeats, repeat)
        ),
        searches=tuple(
            replace(search, only_repeats=(repeat,))
            for search in scenario.searches
            if in_repeat(search.only_repeats, repeat)
        ),
    )


def _print_summary(scenario: Scenario, store: Store, console: Console) -> None:
    order = [system.name for system in scenario.systems]
    runs = sorted(store.lines("runs.jsonl"), key=lambda run: order.index(run["system"]))
    summary = summarise(
        store.lines("rows.jsonl"), runs, scenario.targets, scenario.short_prompt_tokens
    )
    store.write("summary.json", summary)
    for point in points(summary):
        console.plain("")
        if point.title:
            console.plain(point.title)
        for line in as_text(table(summary, point)):
            console.plain(line)
    console.plain("")
    console.plain(f"results in {store.folder}; a report: python -m layered_sglang.bench report DIR")
