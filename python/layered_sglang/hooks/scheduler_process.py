"""The scheduler process: SGLang's own, started only when the layered scheduler is in its place."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any

from layered_sglang.config import ConfigError
from layered_sglang.hooks import registration


def run_scheduler_process(*args: Any, **kwargs: Any) -> None:
    """Take SGLang's ``run_scheduler_process``'s place (same arguments) in the spawned process.

    Exits with status 1 and one line on standard error when SGLang is not the pinned one or a hook did
    not take; the launcher then ends too.
    """
    from sglang.srt.plugins import load_plugins

    from layered_sglang.hooks.pinned import check_pinned

    registration.in_scheduler_process = True
    try:
        check_pinned()
        load_plugins()
        registration.verify_hooks()
    except ConfigError as error:
        print(f"layered-sglang: error: {error}", file=sys.stderr, flush=True)
        pipe = next(a for a in (*args, *kwargs.values()) if isinstance(a, Connection))
        pipe.send({"status": "refused"})
        sys.exit(1)
    from sglang.srt.managers import scheduler

    scheduler.run_scheduler_process(*args, **kwargs)


def run_traced_scheduler_process(*args: Any, **kwargs: Any) -> None:
    """The same for ``--prefill-schedule chunked`` with a trace file: SGLang's scheduler, traced."""
    registration.trace_only = True
    run_scheduler_process(*args, **kwargs)
