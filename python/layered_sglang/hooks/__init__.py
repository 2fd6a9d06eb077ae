"""The glue: the only rooms that touch SGLang's scheduler, worker and runner classes.

Pinned to one SGLang version; ``pinned.py`` says what they rely on and checks it at start-up.
"""

import os

#: Set by ``layered_sglang.launch_server`` and inherited by the processes that it starts. Without it
#: the installed plugin leaves SGLang alone.
LAUNCHER_ENV = "LAYERED_SGLANG_LAUNCHER"


def launched_by_us() -> bool:
    return os.environ.get(LAUNCHER_ENV) == "1"


def activate() -> None:
    """Entry point ``sglang.srt.plugins``: SGLang calls it in every process of the server."""
    if launched_by_us():
        from layered_sglang.hooks.registration import register_hooks

        register_hooks()
