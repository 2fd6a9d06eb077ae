"""The scheduler process: SGLang's own, started only when the layered scheduler is in its place."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from layered_sglang.config import ConfigError, StartRefused
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
        _refuse(error, *args, *kwargs.values())
    from sglang.srt.managers import scheduler

    try:
        scheduler.run_scheduler_process(*args, **kwargs)
    except StartRefused as error:
        _refuse(error, *args, *kwargs.values())


def run_stock_scheduler_process(*args: Any, **kwargs: Any) -> None:
    """The same for ``--prefill-schedule chunked``: SGLang's scheduler, traced if a file is named, and
    the experts' kernels as ``--moe-kernels`` says."""
    registration.stock_schedule = True
    run_scheduler_process(*args, **kwargs)


def _refuse(error: BaseException, *arguments: Any) -> NoReturn:
    print(f"layered-sglang: error: {error}", file=sys.stderr, flush=True)
    pipe = next(a for a in arguments if isinstance(a, Connection))
    pipe.send({"status": "refused"})
    sys.exit(1)
