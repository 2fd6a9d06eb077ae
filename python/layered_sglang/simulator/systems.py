"""The systems of the command line: ``slo:MS``, ``fixed:TOKENS``, ``groups:N``, ``chunked:TOKENS``,
``mixed:TOKENS``."""

from __future__ import annotations

from dataclasses import dataclass

from layered_sglang.scheduling import CostModel, Estimator, fixed_planner, slo_planner
from layered_sglang.scheduling.correction import OnlineCorrection
from layered_sglang.scheduling.estimator import FITTED_LIMIT
from layered_sglang.scheduling.graph_sizes import fine_sizes, stock_sizes
from layered_sglang.simulator.chunked import ChunkedSchedule
from layered_sglang.simulator.errors import SimulationError
from layered_sglang.simulator.layered import LayeredSchedule
from layered_sglang.simulator.replica import Schedule
from layered_sglang.simulator.stock import StockWorld
from layered_sglang.simulator.world import World

#: Kind -> what its number is, and the number where none is given.
KINDS: dict[str, tuple[str, float | None]] = {
    "slo": ("inter-token target, ms; --itl-slo-ms where none is given", None),
    "fixed": ("prompt tokens per layer group", 512),
    "groups": ("layer groups of every cohort", 16),
    "chunked": ("SGLang's chunked prefill before decode, tokens", 8192),
    "mixed": ("SGLang's mixed chunks, tokens", 512),
}


@dataclass(frozen=True)
class System:
    """A way to schedule prefill. ``number`` as in :data:`KINDS`; milliseconds for ``slo``."""

    kind: str
    number: float

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.number:g}"

    @staticmethod
    def parse(text: str, itl_slo_ms: float) -> System:
        kind, colon, argument = text.partition(":")
        try:
            default = KINDS[kind][1]
            number = float(argument) if colon else itl_slo_ms if default is None else default
            if not 0 < number < 1e9 or (kind != "slo" and number != int(number)):
                raise ValueError
        except (KeyError, ValueError):
            kinds = ", ".join(f"{name}[:{about}]" for name, (about, _) in KINDS.items())
            raise SimulationError(f"system {text!r} is none of {kinds}") from None
        return System(kind, number)

    @property
    def stock(self) -> bool:
        """Whether SGLang serves as it is."""
        return self.kind in ("chunked", "mixed")

    def graph_sizes(self, max_running: int) -> tuple[int, ...]:
        """Batch sizes of its decode graphs."""
        return tuple((stock_sizes if self.stock else fine_sizes)(max_running))

    def world(
        self, model: CostModel, noise: float, bias: float, seed: int, host_noise: float = 0.0
    ) -> World:
        """The GPU and the host that it runs on."""
        kind = StockWorld if self.stock else World
        return kind(model, noise, bias, seed, host_noise=host_noise)

    def estimator(self, model: CostModel, learns: bool) -> Estimator:
        """What the planner predicts by.

        ``learns``: the world differs from ``model``; the planner starts with the margin that the server
        starts with. Otherwise it has none and needs none.
        """
        correction = OnlineCorrection(FITTED_LIMIT)
        if not learns:
            correction.margin = 0.0
        return Estimator(model, correction)

    def schedule(self, estimator: Estimator, max_tokens: int, learns: bool) -> Schedule:
        """A new schedule for one replica, whose planner predicts by ``estimator`` and, if it ``learns``,
        observes."""
        if self.stock:
            return ChunkedSchedule(int(self.number), self.kind == "mixed")
        if self.kind == "slo":
            planner, target = slo_planner(estimator), self.number / 1e3
        elif self.kind == "fixed":
            planner, target = fixed_planner(estimator, int(self.number)), None
        else:
            planner, target = fixed_planner(estimator, 512, int(self.number)), None
        return LayeredSchedule(planner, target, max_tokens, learns)
