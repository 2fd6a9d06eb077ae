"""The experts that a server loaded during a run, from the file that its plugin writes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

#: The plugin writes its totals a quarter of a second after they changed.
SETTLE_SECONDS = 0.6


def read_expert_loads(path: Path, start: float, end: float) -> dict[str, Any]:
    """The loads of a run, or an empty mapping where the server counts none (a dense model).

    Args:
        path: the plugin's file.
        start, end: of the run, ``time.monotonic()``; nothing else may have run since.

    Returns:
        ``experts``: ``bytes_per_expert``, ``loads`` and ``iterations`` by kind.
    """
    time.sleep(SETTLE_SECONDS)
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    before = [line for line in lines if line["time"] <= start]
    after = [line for line in lines if start < line["time"] <= end + SETTLE_SECONDS]
    if not after:
        return {}
    last = after[-1]
    experts: dict[str, Any] = {"bytes_per_expert": last["bytes_per_expert"]}
    for name in ("loads", "iterations"):
        base = before[-1][name] if before else {}
        experts[name] = {kind: n - base.get(kind, 0) for kind, n in last[name].items()}
    return {"experts": experts}
