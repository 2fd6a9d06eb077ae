"""A test's own SGLang plugin: what is loaded from the host KV cache arrives late, as by a copy stream.

Without a GPU SGLang's loads are done when it has asked for them. Here a layer's load is done when
somebody waits for that layer or a later one. Until then its slots hold garbage. One line a load goes to
the file ``LATE_LOADS``: how many tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

#: Copies that no event stands for yet.
asked: list[Callable[[], None]] = []
#: By event of SGLang's and layer.
pending: dict[tuple[Any, int], list[Callable[[], None]]] = {}


def activate() -> None:
    """Entry point ``sglang.srt.plugins``; does nothing outside scheduler processes."""
    from layered_sglang.hooks import registration

    if "LATE_LOADS" not in os.environ or not registration.in_scheduler_process:
        return
    from sglang.srt.managers.cache_controller import LayerLoadingEvent
    from sglang.srt.mem_cache.hiradix_cache import HiRadixCache
    from sglang.srt.mem_cache.pool_host import base, mha
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    # SGLang leaves 10 GB of the machine free; this pool is small, and so may be what is free.
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = mha.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0
    load, hear = MHATokenToKVPoolHost.load_to_device_per_layer, HiRadixCache.loading_check

    def load_later(host: Any, device: Any, host_rows: Any, rows: Any, layer: int, io: str) -> None:
        if layer == 0:
            with open(os.environ["LATE_LOADS"], "a") as out:
                out.write(f"{len(rows)}\n")
        for cache in (device.k_buffer, device.v_buffer):
            cache[layer][rows] = 1e3
        asked.append(lambda: load(host, device, host_rows, rows, layer, io))

    def complete(event: Any, layer: int) -> None:
        pending[event, layer] = asked[:]
        asked.clear()

    def wait(event: Any, layer: int) -> None:
        for earlier in range(layer + 1):
            for copy in pending.pop((event, earlier), ()):
                copy()

    def hear_of_it(cache: Any, finish_count: int | None = None) -> None:
        hear(cache, 0 if pending else finish_count)

    MHATokenToKVPoolHost.load_to_device_per_layer = load_later
    LayerLoadingEvent.complete = complete
    LayerLoadingEvent.wait = wait
    HiRadixCache.loading_check = hear_of_it
