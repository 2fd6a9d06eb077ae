"""YAML with positions: every complaint about a value names its file, line and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
D = TypeVar("D")

#: Of systems and workloads: they become names of files.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ScenarioError(Exception):
    """A scenario that cannot be run. The message is one line: where, what, what is allowed."""


class Located:
    """A YAML node with the path of keys that leads to it.

    Args:
        node: of ``yaml.compose``.
        source: what to call the file.
        key: dotted path, empty at the root.
    """

    def __init__(self, node: yaml.Node, source: str, key: str = "") -> None:
        self._node = node
        self._source = source
        self._read: set[str] = set()
        self.key = key

    def error(self, message: str) -> ScenarioError:
        """The error to raise for this node."""
        # A node made by --set stands in no file.
        mark = self._node.start_mark
        where = f"{self._source}:{mark.line + 1}" if mark is not None else "--set"
        return ScenarioError(f"{where}: {self.key + ': ' if self.key else ''}{message}")

    def value(self) -> Any:
        """The node as Python objects."""
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_document(self._node)
        except yaml.constructor.ConstructorError as error:
            raise self.error(str(error.problem)) from error
        finally:
            loader.dispose()

    def items(self) -> list[tuple[str, Located]]:
        """The keys of a mapping with their nodes, in the file's order; ``<<: *other`` adds another's."""
        if not isinstance(self._node, yaml.MappingNode):
            raise self.error(f"expected keys and values, got {self._short()}")
        found: dict[str, Located] = {}
        merged: dict[str, Located] = {}
        for key_node, node in self._node.value:
            name = str(key_node.value)
            if name == "<<":
                merged |= dict(Located(node, self._source, self.key).items())
                continue
            child = Located(node, self._source, f"{self.key}.{name}" if self.key else name)
            if name in found:
                raise child.error("this key is there twice")
            found[name] = child
        return list((merged | found).items())

    def elements(self) -> list[Located]:
        """The elements of a list; one value that is no list counts as a list of it."""
        if not isinstance(self._node, yaml.SequenceNode):
            return [self]
        return [
            Located(node, self._source, f"{self.key}[{i}]")
            for i, node in enumerate(self._node.value)
        ]

    def optional(self, name: str) -> Located | None:
        """The value of a key, None where it is absent or null."""
        self._read.add(name)
        child = dict(self.items()).get(name)
        return None if child is None or child.value() is None else child

    def required(self, name: str) -> Located:
        child = self.optional(name)
        if child is None:
            raise self.error(f"the key {name!r} is missing")
        return child

    def get(self, name: str, read: Callable[[Located], T], default: D) -> T | D:
        """``read`` of a key's value, or the default where the key is absent."""
        child = self.optional(name)
        return default if child is None else read(child)

    def finish(self) -> None:
        """Refuse keys that nobody asked for."""
        for name, child in self.items():
            if name not in self._read:
                known = ", ".join(sorted(self._read))
                raise child.error(f"unknown key; there are: {known}")

    def text(self) -> str:
        value = self.value()
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise self.error(f"expected a text, got {self._short()}")
        return str(value)

    def number(self) -> float:
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"expected a number, got {self._short()}")
        return float(value)

    def positive(self) -> float:
        value = self.number()
        if not 0 < value < float("inf"):
            raise self.error(f"must be greater than 0, got {self._short()}")
        return value

    def count(self, at_least: int = 1) -> int:
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"expected a whole number, got {self._short()}")
        if value < at_least:
            raise self.error(f"must be at least {at_least}, got {value}")
        return value

    def flag(self) -> bool:
        value = self.value()
        if not isinstance(value, bool):
            raise self.error(f"expected true or false, got {self._short()}")
        return value

    def choice(self, allowed: Sequence[str]) -> str:
        value = self.text()
        if value not in allowed:
            raise self.error(f"expected one of {', '.join(allowed)}; got {value!r}")
        return value

    def one_of(self, kinds: Sequence[str]) -> tuple[str, Located]:
        """The one key of a mapping that holds exactly one of ``kinds``."""
        items = self.items()
        if len(items) != 1 or items[0][0] not in kinds:
            got = ", ".join(name for name, _ in items) or "nothing"
            raise self.error(f"expected exactly one of {', '.join(kinds)}; got {got}")
        return items[0]

    def _short(self) -> str:
        text = repr(self.value())
        return text if len(text) <= 60 else text[:57] + "..."


def load(path: Path, overrides: Sequence[str] = ()) -> Located:
    """The root of a YAML file, with ``KEY.PATH=VALUE`` overrides in place.

    Raises:
        ScenarioError: unreadable, not YAML, not a mapping, or an override that fits nowhere.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ScenarioError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ScenarioError(f"{path}:1: expected keys and values")
    for override in overrides:
        _override(root, override)
    return Located(root, str(path))


def _override(root: yaml.MappingNode, override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ScenarioError(f"--set {override}: expected KEY.PATH=VALUE")
    try:
        new = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ScenarioError(f"--set {override}: not valid YAML: {error.problem}") from error
    new = new or yaml.ScalarNode("tag:yaml.org,2002:null", "null")
    _unmark(new)
    mapping = root
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        at = next((i for i, (k, _) in enumerate(mapping.value) if k.value == key), None)
        if last:
            pair = (yaml.ScalarNode("tag:yaml.org,2002:str", key), new)
            if at is None:
                mapping.value.append(pair)
            else:
                mapping.value[at] = pair
            return
        if at is None:
            child: yaml.Node = yaml.MappingNode("tag:yaml.org,2002:map", [])
            mapping.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", key), child))
        else:
            child = mapping.value[at][1]
        if not isinstance(child, yaml.MappingNode):
            raise ScenarioError(f"--set {override}: {key} holds no keys")
        mapping = child


def _unmark(node: yaml.Node) -> None:
    node.start_mark = None
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                _unmark(part)
