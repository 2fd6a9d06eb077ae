"""A scenario file as frozen dataclasses: the one place of its defaults."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layered_sglang.bench import located
from layered_sglang.bench.located import Located, ScenarioError
from layered_sglang.bench.workload import Workload, read_workload
from layered_sglang.model_zoo import PRESETS, UnknownPresetError, find_preset

ROUTERS = ("uniform", "shaped")
KINDS = ("stock", "layered", "url")
_NO_TEXTS: tuple[str, ...] = ()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Model:
    """What is served: a preset of ``make_model``, or a folder or hub name.

    Attributes:
        vocabulary: prompts' token ids are below it.
    """

    preset: str | None
    path: str | None
    vocabulary: int


@dataclass(frozen=True)
class System:
    """A system under test.

    Attributes:
        kind: stock and layered are started here; url runs already.
        flags: of its server, after the scenario's own.
        environment: of its server.
        url: base address of an OpenAI-compatible endpoint, without ``/v1``.
        model: the name by which that endpoint knows its model.
    """

    name: str
    kind: str
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    url: str = ""
    model: str = ""


@dataclass(frozen=True)
class Target:
    """A service level: a request counts if it keeps both.

    Attributes:
        ttft_s: most seconds to the first token.
        itl_ms: most milliseconds between any two tokens.
    """

    ttft_s: float
    itl_ms: float


@dataclass(frozen=True)
class Search:
    """Look for the highest rate at which ``attainment`` of the requests keep the first target."""

    low: float
    high: float
    attainment: float = 0.9
    steps: int = 5


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
        rates: requests per second to run at, or empty for the workload's own arrivals.
        repeats: runs of every system at every rate.
        repeats_per_start: of these, runs within one life of the servers.
        resident: one: a server at a time; all: all at once, taking turns.
        iteration_trace: have the servers that can write which layers each iteration ran.
        expert_bytes: count the experts that each layer loads (costs two small kernels a layer).
        router: of dummy weights: uniform as they are, or shaped like a trained model's.
        request_seconds: after which an answer counts as failed.
    """

    name: str
    about: str
    model: Model
    systems: tuple[System, ...]
    workload: Workload
    targets: tuple[Target, ...]
    short_prompt_tokens: int | None
    rates: tuple[float, ...]
    search: Search | None
    repeats: int
    repeats_per_start: int
    resident: str
    warm_up: WarmUp
    iteration_trace: bool
    expert_bytes: bool
    router: str
    start_seconds: float
    request_seconds: float


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario.

    Args:
        overrides: ``KEY.PATH=VALUE`` each, in place of what the file says.

    Raises:
        ScenarioError: one line that names file, line and key.
    """
    root = located.load(path, overrides)
    flags = root.get("flags", _flags, _NO_TEXTS)
    systems = _systems(root.required("systems"), flags)
    workload = read_workload(root.required("workload"))
    search = root.get("search", _search, None)
    targets = root.get("targets", _targets, _targets(None))
    rates = root.get("rates", _rates, _rates(None))
    if search is not None and not targets:
        raise root.required("search").error("needs targets")
    scenario = Scenario(
        name=root.get("name", Located.text, path.stem),
        about=root.get("about", Located.text, ""),
        model=_model(root.required("model")),
        systems=systems,
        workload=workload,
        targets=targets,
        short_prompt_tokens=root.get("short_prompt_tokens", Located.count, None),
        rates=rates,
        search=search,
        repeats=root.get("repeats", Located.count, 3),
        repeats_per_start=root.get("repeats_per_start", Located.count, 1),
        resident=root.get("resident", lambda at: at.choice(("one", "all")), "one"),
        warm_up=root.get("warm_up", _warm_up, WarmUp()),
        iteration_trace=root.get("iteration_trace", Located.flag, True),
        expert_bytes=root.get("expert_bytes", Located.flag, False),
        router=root.get("router", lambda at: at.choice(ROUTERS), ROUTERS[0]),
        start_seconds=root.get("start_seconds", Located.positive, 600.0),
        request_seconds=root.get("request_seconds", Located.positive, 300.0),
    )
    root.finish()
    if scenario.router != ROUTERS[0] and scenario.model.preset is None:
        raise root.required("router").error(
            "is for the weights of a preset; a real model has its own"
        )
    return scenario


def _model(at: Located) -> Model:
    preset, path = at.get("preset", Located.text, None), at.get("path", Located.text, None)
    vocabulary = at.get("vocabulary", Located.count, None)
    at.finish()
    if (preset is None) == (path is None):
        raise at.error(f"needs either path or preset; presets: {', '.join(PRESETS)}")
    if preset is not None:
        try:
            size = find_preset(preset).config["vocab_size"]
        except UnknownPresetError as error:
            raise at.required("preset").error(str(error)) from error
        return Model(preset, None, vocabulary or size)
    return Model(None, path, vocabulary or 10_000)


def _systems(at: Located, common: tuple[str, ...]) -> tuple[System, ...]:
    systems = []
    for name, node in at.items():
        if not _NAME.fullmatch(name):
            raise node.error("a system's name has letters, digits, '.', '_' and '-' only")
        url = node.get("url", Located.text, "")
        default = "url" if url else name if name in KINDS else ""
        kind = node.get("server", lambda n: n.choice(KINDS), default)
        flags = node.get("flags", _flags, _NO_TEXTS)
        environment = node.get("environment", _environment, _environment(None))
        model = node.get("model", Located.text, "default")
        node.finish()
        if not kind:
            raise node.error("needs server: stock, server: layered or a url")
        if (kind == "url") != bool(url):
            raise node.error("a url goes with a system that is not started here, and only there")
        if kind == "url" and (flags or environment):
            raise node.error("runs already, so flags and environment have no effect")
        systems.append(
            System(name, kind, (*common, *flags), environment, url.rstrip("/"), model)
            if kind != "url"
            else System(name, kind, url=url.rstrip("/").removesuffix("/v1"), model=model)
        )
    if not systems:
        raise at.error("there is no system to measure")
    return tuple(systems)


def _flags(at: Located) -> tuple[str, ...]:
    """A text as a shell would split it, or a list."""
    try:
        return tuple(word for node in at.elements() for word in shlex.split(node.text()))
    except ValueError as error:
        raise at.error(f"cannot be split into flags: {error}") from error


def _environment(at: Located | None) -> tuple[tuple[str, str], ...]:
    return tuple((name, node.text()) for name, node in at.items()) if at else ()


def _rates(at: Located | None) -> tuple[float, ...]:
    return tuple(element.positive() for element in at.elements()) if at else ()


def _targets(at: Located | None) -> tuple[Target, ...]:
    return tuple(_target(element) for element in at.elements()) if at else ()


def _target(at: Located) -> Target:
    target = Target(at.required("ttft_s").positive(), at.required("itl_ms").positive())
    at.finish()
    return target


def _search(at: Located) -> Search:
    search = Search(
        at.required("low").positive(),
        at.required("high").positive(),
        at.get("attainment", Located.positive, Search.attainment),
        at.get("steps", Located.count, Search.steps),
    )
    at.finish()
    if search.low >= search.high:
        raise at.error(f"low ({search.low:g}) must be below high ({search.high:g})")
    if search.attainment > 1:
        raise at.error(f"attainment is a share of requests, at most 1; got {search.attainment:g}")
    return search


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


_PACKAGED = Path(__file__).parent / "scenarios"
