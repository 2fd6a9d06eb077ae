"""Service levels."""

from __future__ import annotations

from dataclasses import dataclass

from layered_sglang.bench.spec.located import Located


@dataclass(frozen=True)
class Target:
    """A service level: a request counts if it keeps both.

    Attributes:
        ttft_s: most seconds to the first token.
        itl_ms: most milliseconds between any two tokens.
    """

    ttft_s: float
    itl_ms: float

    @property
    def name(self) -> str:
        return f"TTFT ≤ {self.ttft_s:g} s, ITL ≤ {self.itl_ms:g} ms"


def read_target(at: Located) -> Target:
    """``{ttft_s, itl_ms}``."""
    target = Target(at.required("ttft_s").positive(), at.required("itl_ms").positive())
    at.finish()
    return target


def read_targets(at: Located) -> tuple[Target, ...]:
    return tuple(read_target(element) for element in at.elements())
