"""The systems of a scenario: servers to start, endpoints that run, and other uses of the same server."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from layered_sglang.bench.spec.located import NAME, Located

KINDS = ("stock", "layered", "url")
#: What changes on a stock server between runs, as its flags are named.
CHUNK_SIZE, MIXED = "chunked_prefill_size", "enable_mixed_chunk"


@dataclass(frozen=True)
class System:
    """A system under test.

    Attributes:
        kind: stock and layered are started here; url runs already.
        flags: of its server, after the scenario's own.
        environment: of its server.
        url: base address of an OpenAI-compatible endpoint, without ``/v1``.
        model: the name by which that endpoint knows its model; empty: the first that it lists.
        server: the system whose server this one shares; its own name where it has one.
        request: fields that its requests have beside the benchmark's own, put into one another.
        planning: what a layered server's ``/layered_prefill`` is told before this system's runs; of
            a stock server, CHUNK_SIZE and MIXED.
    """

    name: str
    kind: str
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    url: str = ""
    model: str = ""
    server: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    planning: Mapping[str, Any] = field(default_factory=dict)


def read_systems(at: Located, common: tuple[str, ...]) -> tuple[System, ...]:
    """The scenario's ``systems``.

    Args:
        common: flags of every server started here.
    """
    systems: dict[str, System] = {}
    for name, node in at.items():
        if not NAME.fullmatch(name):
            raise node.error("a system's name has letters, digits, '.', '_' and '-' only")
        request, planning = (node.get(key, _mapping, {}) for key in ("request", "planning"))
        shared = node.optional("on")
        system = _own(name, node, common) if shared is None else _sharing(name, shared, systems)
        node.finish()
        if planning:
            _check_planning(node.required("planning"), system.kind)
        systems[name] = replace(system, request=request, planning=planning)
    if not systems:
        raise at.error("there is no system to measure")
    return tuple(systems.values())


def sglang_s_schedule(described: Mapping[str, Any]) -> tuple[int | None, bool]:
    """How a stock system schedules: its chunk size, None where SGLang chooses, and whether it mixes.

    Args:
        described: the system as scenario.json has it.
    """
    flags, planning = list(described["flags"]), described["planning"]
    size = planning.get(CHUNK_SIZE)
    if size is None and "--chunked-prefill-size" in flags[:-1]:
        size = flags[flags.index("--chunked-prefill-size") + 1]
    mixed = planning.get(MIXED, "--enable-mixed-chunk" in flags)
    return None if size is None else int(size), bool(mixed)


def _check_planning(at: Located, kind: str) -> None:
    """What a layered server is told it checks itself."""
    if kind == "url":
        raise at.error("is for servers that are started here")
    if kind == "stock":
        at.get(CHUNK_SIZE, Located.count, None)
        at.get(MIXED, Located.flag, None)
        at.finish()


def _own(name: str, node: Located, common: tuple[str, ...]) -> System:
    """A system with a server or an endpoint of its own."""
    url = node.get("url", Located.text, "")
    default = "url" if url else name if name in KINDS else ""
    kind = node.get("server", lambda n: n.choice(KINDS), default)
    flags = node.get("flags", read_flags, ())
    environment = node.get("environment", _environment, ())
    model = node.get("model", Located.text, "")
    node.finish()
    if not kind:
        raise node.error("needs server: stock, server: layered, a url, or on: another system")
    if (kind == "url") != bool(url):
        raise node.error("a url goes with a system that is not started here, and only there")
    if kind == "url":
        if flags or environment:
            raise node.error("runs already, so flags and environment have no effect")
        address = url.rstrip("/").removesuffix("/v1")
        return System(name, kind, url=address, model=model, server=name)
    return System(name, kind, (*common, *flags), environment, model=model, server=name)


def _sharing(name: str, shared: Located, systems: Mapping[str, System]) -> System:
    """A system that uses another one's server."""
    owners = [system.name for system in systems.values() if system.server == system.name]
    owner = systems[shared.choice(owners)] if owners else None
    if owner is None:
        raise shared.error("there is no system above this one whose server it could share")
    return replace(owner, name=name)


def read_flags(at: Located) -> tuple[str, ...]:
    """A text as a shell would split it, or a list."""
    try:
        return tuple(word for node in at.elements() for word in shlex.split(node.text()))
    except ValueError as error:
        raise at.error(f"cannot be split into flags: {error}") from error


def _environment(at: Located) -> tuple[tuple[str, str], ...]:
    return tuple((name, node.text()) for name, node in at.items())


def _mapping(at: Located) -> dict[str, Any]:
    at.items()  # or it complains
    value: dict[str, Any] = at.value()
    return value
