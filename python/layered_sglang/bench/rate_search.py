"""The highest rate at which enough requests keep their target."""

from __future__ import annotations

from collections.abc import Callable

from layered_sglang.bench.scenario import Search


def search_rate(search: Search, attain: Callable[[float], float]) -> float | None:
    """Bisect [low, high].

    Args:
        attain: runs at a rate; the share of its requests that keep the target.

    Returns:
        The highest rate tried that kept it, or None if ``low`` did not. At most ``steps`` rates are
        tried, so it is exact to (high − low) / 2^(steps − 2).
    """
    low, high = search.low, search.high
    if attain(low) < search.attainment:
        return None
    if search.steps > 1 and attain(high) >= search.attainment:
        return high
    for _ in range(search.steps - 2):
        middle = (low + high) / 2
        if attain(middle) >= search.attainment:
            low = middle
        else:
            high = middle
    return low
