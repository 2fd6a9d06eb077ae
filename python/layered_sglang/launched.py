"""Whether this process belongs to a server that our launcher started."""

import os

#: Set by ``layered_sglang.launch_server`` and inherited by the processes that it starts. Without it
#: the installed plugins leave SGLang alone.
LAUNCHER_ENV = "LAYERED_SGLANG_LAUNCHER"


def launched_by_us() -> bool:
    return os.environ.get(LAUNCHER_ENV) == "1"
