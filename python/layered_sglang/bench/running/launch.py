"""How the systems under test are started: their commands and environments."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from layered_sglang.bench.in_server import plugin
from layered_sglang.bench.running.measure import Gpus, describe_machine
from layered_sglang.bench.spec.scenario import Scenario
from layered_sglang.bench.spec.system import System
from layered_sglang.bench.store import Store
from layered_sglang.model_zoo import find_preset, write_model
from layered_sglang.model_zoo.draft import write_eagle3_draft
from layered_sglang.platforms import NAME as CPU_PLATFORM

#: Of every server. Without the first, what a stream repeats costs more than what it brings.
COMMON = ("--incremental-streaming-output", "--enable-metrics")
DUMMY = ("--load-format", "dummy", "--skip-tokenizer-init")
LAUNCHERS = {"stock": "sglang.launch_server", "layered": "layered_sglang.launch_server"}
#: What a benchmark adds to its servers.
BENCH_PLUGIN = {"sglang.srt.plugins": plugin.ENTRY_POINT}
#: What SGLang finds of an installed layered-sglang; see pyproject.toml.
ENTRY_POINTS = {
    "sglang.srt.plugins": "layered_sglang = layered_sglang.hooks:activate",
    "sglang.srt.platforms": "layered_sglang_cpu = layered_sglang.platforms:activate",
}


@dataclass(frozen=True)
class Launch:
    """A server's start.

    Attributes:
        command: without host and port.
        environment: beside this process's own.
        trace: where it writes its iterations, None if it cannot.
        experts: where it writes the experts it loads, None if they are not counted.
        shapes_router: whether its router can be shaped between two runs.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    trace: Path | None
    experts: Path | None
    shapes_router: bool = False

    def shell(self) -> str:
        """The start as a line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, "python", *map(shlex.quote, self.command[1:])])


def write_model_folder(scenario: Scenario, folder: Path) -> str:
    """What ``--model-path`` gets: a preset's new folder, or the scenario's own path."""
    if scenario.model.preset is None:
        assert scenario.model.path is not None
        return scenario.model.path
    return str(write_model(find_preset(scenario.model.preset), folder, force=True).directory)


def _draft_flags(scenario: Scenario, system: System, folder: Path) -> list[str]:
    """The scenario's draft, for a system that has a speculative algorithm and names none of its own."""
    flag, preset = "--speculative-draft-model-path", scenario.model.preset
    if (
        not scenario.model.draft
        or "--speculative-algorithm" not in system.flags
        or flag in system.flags
    ):
        return []
    assert preset is not None
    model = find_preset(preset)
    draft = write_eagle3_draft(model.config, folder / "draft", weights=model.random_weights)
    return [flag, str(draft)]


def make_launch(
    scenario: Scenario, system: System, model: str, folder: Path, gpu: bool, trace: Path
) -> Launch:
    """The start of a system that is started here.

    Args:
        model: for ``--model-path``.
        folder: for files that the server needs, beside the model.
        gpu: whether this machine has one.
        trace: where its iterations may be written.
    """
    flags = ["--model-path", model, *COMMON]
    preset = scenario.model.preset
    if preset is not None and not find_preset(preset).random_weights:
        flags += DUMMY
    if "--dtype" not in system.flags:
        # Not every attention kernel of a GPU takes float32.
        flags += ["--dtype", "bfloat16" if gpu else "float32"]
    flags += _draft_flags(scenario, system, folder)
    environment = dict(system.environment)
    if system.kind == "stock" and not gpu:
        flags += ["--device", "cpu"]
        environment.setdefault("SGLANG_PLATFORM", CPU_PLATFORM)
    writes = system.kind == "layered" and scenario.iteration_trace
    if writes:
        flags += ["--layered-trace-file", str(trace)]
    experts = trace.with_suffix(".experts") if scenario.expert_bytes else None
    if experts is not None:
        environment[plugin.EXPERTS_ENV] = str(experts)
    if scenario.shapes_routers:
        environment[plugin.ROUTER_ENV] = "1"
    shared = [other for other in scenario.systems if other.server == system.name]
    if system.kind == "stock" and any(other.planning for other in shared):
        environment[plugin.CHUNKS_ENV] = "1"
    wanted = {plugin.EXPERTS_ENV, plugin.ROUTER_ENV, plugin.CHUNKS_ENV} & set(environment)
    folders = _plugin_folders(folder, bool(wanted))
    if folders:
        known = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*map(str, folders), known]))
    command = (sys.executable, "-m", LAUNCHERS[system.kind], *flags, *system.flags)
    return Launch(command, environment, trace if writes else None, experts, scenario.shapes_routers)


def describe_systems(
    store: Store,
    scenario: Scenario,
    gpus: Gpus,
    system: System | None = None,
    launch: Launch | None = None,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write systems.json with what is known by now.

    Args:
        system, launch, info: a server that was just started, and its ``/server_info``.
    """
    known = store.read("systems.json") if store.has("systems.json") else {"systems": {}}
    systems = known["systems"]
    if system is not None and launch is not None:
        systems[system.name] = {"command": launch.shell(), "server_info": info or {}}
    for other in scenario.systems:
        if other.kind == "url":
            systems[other.name] = {"command": f"runs already: {other.url}", "server_info": {}}
    for other in scenario.systems:
        if other.server != other.name:
            systems[other.name] = {"command": f"the server of {other.server}", "server_info": {}}
    store.write("systems.json", {**known, "machine": describe_machine(gpus)})


def _plugin_folders(folder: Path, bench: bool) -> list[Path]:
    """Folders for PYTHONPATH that tell SGLang of plugins.

    Args:
        bench: of the benchmark's own, too; of the package's where it is on the path, not installed.
    """
    found = {name: entry_points(group=name) for name in ENTRY_POINTS}
    missing = {
        group: line
        for group, line in ENTRY_POINTS.items()
        if line.split(" = ")[1] not in {point.value for point in found[group]}
    }
    folders = [_plugin_folder(folder, "layered_sglang_on_path", missing)] if missing else []
    if bench:
        folders.append(_plugin_folder(folder, "layered_sglang_bench", BENCH_PLUGIN))
    return folders


def _plugin_folder(folder: Path, name: str, points: dict[str, str]) -> Path:
    """A folder with a distribution of these entry points and nothing else."""
    info = folder / name / f"{name}-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    title = name.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: 0\n")
    lines = [text for group, line in points.items() for text in (f"[{group}]", line)]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return info.parent
