"""The planner of this server: the policy in force, and its cost model, from a profile or from data
sheets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layered_sglang.config import LayeredConfig
from layered_sglang.hooks.server_args import layered_config
from layered_sglang.hooks.views import strictest_target
from layered_sglang.scheduling import (
    CohortView,
    CostModel,
    DecodeWork,
    Estimator,
    ModelShape,
    Planner,
    fixed_planner,
    slo_planner,
)
from layered_sglang.scheduling.correction import FIRST, OnlineCorrection
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.scheduling.estimator import FITTED_LIMIT, NOMINAL_LIMIT
from layered_sglang.scheduling.model_shape import SPREAD_RANDOM, SPREAD_TRAINED
from layered_sglang.scheduling.profile import (
    CostProfile,
    find_profile,
    model_key,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from layered_sglang.hooks.cohort import Cohort
    from layered_sglang.hooks.model_runner import LayeredModelRunner

SHIPPED = Path(__file__).parent.parent / "profiles"


class PlannerInForce:
    """How this server plans at present. The policy may change between two iterations; the estimator,
    and what it has learnt, stays.

    Args:
        config: the flags.
        runner: SGLang's model runner, with its graphs captured.
        device_name: the GPU's; ``None`` on a CPU.
        overlap: whether SGLang's overlap scheduler is on.

    Attributes:
        estimator: learns from measured iterations.
        source: one phrase on where its figures come from.
        config: the flags, with what ``/layered_prefill`` has changed since.
        planner: the policy that ``config`` asks for.
    """

    def __init__(
        self,
        config: LayeredConfig,
        runner: LayeredModelRunner,
        device_name: str | None,
        overlap: bool,
    ) -> None:
        self.estimator, self.source = _make_estimator(config, runner, device_name, overlap)
        self.change(config)

    def change(self, config: LayeredConfig) -> None:
        """Plan by ``config`` from now on. A cohort in flight goes on by the new policy."""
        self.config = config
        self.planner = planner_with(self.estimator, config)

    def target(self, reqs: Iterable[Req]) -> float | None:
        """The strictest inter-token target of running requests, seconds; ``None`` without any."""
        default = self.config.itl_slo_ms
        return strictest_target(reqs, None if default is None else default / 1000)

    def view(self, cohort: Cohort, rows: DecodeWork, reqs: Iterable[Req]) -> CohortView:
        """What the policy may know of ``cohort`` in an iteration in which ``reqs`` decode as ``rows``."""
        return cohort.view(rows, self.target(reqs))


def planner_with(estimator: Estimator, config: LayeredConfig) -> Planner:
    """The policy of the flags, with an estimator that may have learned already."""
    if config.policy == "fixed":
        return fixed_planner(estimator, config.group_tokens, config.num_layer_groups)
    return slo_planner(estimator)


def _make_estimator(
    config: LayeredConfig, runner: LayeredModelRunner, device_name: str | None, overlap: bool
) -> tuple[Estimator, str]:
    hf_config = _hf_config(runner)
    args = runner.server_args
    coefficients, name = nominal_coefficients(device_name, bool(hf_config.get("kv_lora_rank")))
    spread = SPREAD_RANDOM if args.load_format == "dummy" else SPREAD_TRAINED
    source, correction = f"data sheet of {name}", OnlineCorrection(NOMINAL_LIMIT, first=FIRST)
    found = _find(config, device_name or "cpu", model_key(hf_config), runner)
    if found is not None:
        profile, path = found
        coefficients = profile.coefficients  # the router is this model's own
        correction = OnlineCorrection(FITTED_LIMIT)
        source = f"profile {path.name}"
    if runner.spec_algorithm.is_speculative():
        # What drafting and verifying take is learnt while serving.
        correction = OnlineCorrection(NOMINAL_LIMIT, first=FIRST)
    sizes = runner.decode_graph_sizes
    model = CostModel(
        ModelShape.from_config(hf_config, runner.model_config.dtype.itemsize, args.tp_size, spread),
        coefficients,
        graph_rows=runner.layer_groups.graph_rows,
        decode_sizes=sizes,
        decode_graphs=bool(sizes),
        prefill_graph_rows=_prefill_graph_rows(runner),
        overlap=overlap,
    )
    return Estimator(model, correction), source


def describe_cost_model(
    estimator: Estimator, runner: LayeredModelRunner, device_name: str | None
) -> dict[str, Any]:
    """What ``python -m layered_sglang.calibrate`` needs to fit this server's cost model; plain types."""
    model = estimator.model
    return {
        "device": device_name or "cpu",
        "model": model_key(_hf_config(runner)),
        "attention": runner.prefill_attention_backend_str,
        "tp_size": runner.server_args.tp_size,
        "max_cohort_tokens": layered_config(runner.server_args).layered_max_prefill_tokens,
        "vocab_size": runner.model_config.vocab_size,
        "shape": dataclasses.asdict(model.shape),
        "coefficients": dataclasses.asdict(model.coefficients),
        "graph_rows": model.graph_rows,
        "decode_sizes": list(model.decode_sizes),
        "decode_graphs": model.decode_graphs,
        "prefill_graph_rows": model.prefill_graph_rows,
        "overlap": model.overlap,
    }


def _hf_config(runner: LayeredModelRunner) -> dict[str, Any]:
    config: dict[str, Any] = runner.model_config.hf_text_config.to_dict()
    config.setdefault("architectures", list(runner.model_config.hf_config.architectures or []))
    return config


def _find(
    config: LayeredConfig, device: str, model: str, runner: LayeredModelRunner
) -> tuple[CostProfile, Path] | None:
    if config.cost_profile is not None:
        path = Path(config.cost_profile)
        return CostProfile.read(path), path  # whoever names it wants it, fitting or not
    attention = runner.prefill_attention_backend_str
    return find_profile(SHIPPED, device, model, attention, runner.server_args.tp_size)


def _prefill_graph_rows(runner: LayeredModelRunner) -> int:
    """Most tokens of a prefill that SGLang replays graphs for."""
    if runner.device != "cuda" or runner.prefill_cuda_graph_runner is None:
        return 0
    sizes = getattr(runner.prefill_cuda_graph_runner, "capture_num_tokens", None)
    return max(sizes) if sizes else 0
