"""A scenario file as frozen dataclasses: the one place of its defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layered_sglang.bench.spec import located
from layered_sglang.bench.spec.cells import Cell, read_cells, read_rates
from layered_sglang.bench.spec.located import NAME, Located, ScenarioError
from layered_sglang.bench.spec.search import Search, read_searches
from layered_sglang.bench.spec.system import System, read_flags, read_systems
from layered_sglang.bench.spec.target import Target, read_targets
from layered_sglang.bench.spec.workload import ROUTERS, Workload, read_workload
from layered_sglang.model_zoo import PRESETS, UnknownPresetError, find_preset

#: The one workload of a scenario that names none.
UNNAMED = ""


@dataclass(frozen=True)
class Model:
    """What is served: a preset of ``make_model``, or a folder or hub name.

    Attributes:
        vocabulary: prompts' token ids are below it.
        draft: an EAGLE-3 draft of dummy weights is written for the preset. Servers whose flags name a
            speculative algorithm get it.
    """

    preset: str | None
    path: str | None
    vocabulary: int
    draft: bool = False


@dataclass(frozen=True)
class WarmUp:
    """Rounds of ``requests`` requests until two rounds take the same time."""

    requests: int = 8
    least_rounds: int = 2
    most_rounds: int = 6
    output_tokens: int = 32


@dataclass(frozen=True)
class Scenario:
    """What a run measures.

    Attributes:
        about: one line for the report.
        short_prompt_tokens: the table has TTFT of shorter prompts, too; None: it has not.
        cells: runs within one life of a server are in this order.
        repeats: runs of every cell.
        repeats_per_start: of these, runs within one life of the servers.
        resident: one: a server at a time; all: all at once, taking turns.
        iteration_trace: have the servers that can write which layers each iteration ran.
        expert_bytes: count the experts that each layer loads (costs two small kernels a layer).
        request_seconds: after which an answer counts as failed.
    """

    name: str
    about: str
    model: Model
    systems: tuple[System, ...]
    workloads: Mapping[str, Workload]
    targets: tuple[Target, ...]
    short_prompt_tokens: int | None
    cells: tuple[Cell, ...]
    searches: tuple[Search, ...]
    repeats: int
    repeats_per_start: int
    resident: str
    warm_up: WarmUp
    iteration_trace: bool
    expert_bytes: bool
    start_seconds: float
    request_seconds: float

    def system(self, name: str) -> System:
        return next(system for system in self.systems if system.name == name)

    @property
    def shapes_routers(self) -> bool:
        """Whether a workload wants the routers shaped."""
        return any(w.router != ROUTERS[0] for w in self.workloads.values())


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario.

    Args:
        overrides: ``KEY.PATH=VALUE`` each, in place of what the file says.

    Raises:
        ScenarioError: one line that names file, line and key.
    """
    root = located.load(path, overrides)
    systems = read_systems(root.required("systems"), root.get("flags", read_flags, ()))
    names = tuple(system.name for system in systems)
    workloads = _workloads(root)
    targets = root.get("targets", read_targets, ())
    searches = root.get("search", lambda at: read_searches(at, names, list(workloads), targets), ())
    scenario = Scenario(
        name=root.get("name", Located.text, path.stem),
        about=root.get("about", Located.text, ""),
        model=_model(root.required("model")),
        systems=systems,
        workloads=workloads,
        targets=targets,
        short_prompt_tokens=root.get("short_prompt_tokens", Located.count, None),
        cells=_cells(root, names, tuple(workloads), bool(searches)),
        searches=searches,
        repeats=root.get("repeats", Located.count, 3),
        repeats_per_start=root.get("repeats_per_start", Located.count, 1),
        resident=root.get("resident", lambda at: at.choice(("one", "all")), "one"),
        warm_up=root.get("warm_up", _warm_up, WarmUp()),
        iteration_trace=root.get("iteration_trace", Located.flag, True),
        expert_bytes=root.get("expert_bytes", Located.flag, False),
        start_seconds=root.get("start_seconds", Located.positive, 600.0),
        request_seconds=root.get("request_seconds", Located.positive, 300.0),
    )
    root.finish()
    if scenario.shapes_routers and scenario.model.preset is None:
        raise root.error(
            "router: shaped is for the weights of a preset; a real model has its own router"
        )
    return scenario


def _workloads(root: Located) -> dict[str, Workload]:
    """``workload``, or ``workloads`` with their names."""
    router = root.get("router", lambda at: at.choice(ROUTERS), ROUTERS[0])
    several = root.optional("workloads")
    if several is None:
        return {UNNAMED: read_workload(root.required("workload"), router)}
    if root.optional("workload") is not None:
        raise several.error("there is a workload, too; put it among the workloads")
    for name, node in several.items():
        if not NAME.fullmatch(name):
            raise node.error("a workload's name has letters, digits, '.', '_' and '-' only")
    named = {name: read_workload(node, router) for name, node in several.items()}
    if not named:
        raise several.error("there is no workload")
    return named


def _cells(
    root: Located, systems: Sequence[str], workloads: Sequence[str], searched: bool
) -> tuple[Cell, ...]:
    """``cells``; without them every workload under every system, at the scenario's ``rates``."""
    cells, rates = root.optional("cells"), root.optional("rates")
    if cells is not None:
        if rates is not None:
            raise rates.error("the cells have their own; leave it out")
        return read_cells(cells, systems, workloads)
    if rates is None and searched:
        return ()
    chosen = (None,) if rates is None else read_rates(rates)
    return tuple(Cell(s, w, rate) for w in workloads for rate in chosen for s in systems)


def _model(at: Located) -> Model:
    preset, path = at.get("preset", Located.text, None), at.get("path", Located.text, None)
    vocabulary = at.get("vocabulary", Located.count, None)
    draft = at.get("draft", lambda node: node.choice(("eagle3",)), None) is not None
    at.finish()
    if (preset is None) == (path is None):
        raise at.error(f"needs either path or preset; presets: {', '.join(PRESETS)}")
    if preset is not None:
        try:
            size = find_preset(preset).config["vocab_size"]
        except UnknownPresetError as error:
            raise at.required("preset").error(str(error)) from error
        return Model(preset, None, vocabulary or size, draft)
    if draft:
        raise at.required("draft").error("is written for a preset; flags name a path's own draft")
    return Model(None, path, vocabulary or 10_000)


def _warm_up(at: Located) -> WarmUp:
    warm_up = WarmUp(
        at.get("requests", Located.count, WarmUp.requests),
        at.get("least_rounds", Located.count, WarmUp.least_rounds),
        at.get("most_rounds", Located.count, WarmUp.most_rounds),
        at.get("output_tokens", Located.count, WarmUp.output_tokens),
    )
    at.finish()
    return warm_up


def find_scenario(name: str) -> Path:
    """A file, or the name of a scenario that comes with the package.

    Raises:
        ScenarioError: there is none; lists those there are.
    """
    path = Path(name)
    if path.exists() or os.sep in name or path.suffix:
        return path
    packaged = {file.stem: file for file in _PACKAGED.glob("*.yaml")}
    if name not in packaged:
        raise ScenarioError(
            f"no file {name!r} and no scenario of this name; there are: {', '.join(packaged)}"
        )
    return packaged[name]


_PACKAGED = Path(__file__).parent.parent / "scenarios"
