"""How a running server plans: values that ``/layered_prefill`` changes, on their way to the scheduler.

SGLang's ``SetInternalStateReq`` takes them there. It carries numbers only and reaches every rank
between the same two iterations, so all go on planning alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from layered_sglang.config import POLICIES, ConfigError, LayeredConfig, flag_name

#: Fields of LayeredConfig that may change while serving.
FIELDS = ("layer_group_policy", "itl_slo_ms", "layer_group_tokens", "num_layer_groups")
_NUMBERS = {"itl_slo_ms": (int, float), "layer_group_tokens": (int,), "num_layer_groups": (int,)}
_PREFIX = "layered_prefill."
#: Key of the scheduler's internal state with the values in force.
STATE = "layered_prefill"


def values(config: LayeredConfig) -> dict[str, Any]:
    """The values in force; ``layer_group_policy`` is never None."""
    return {name: getattr(config, name) for name in FIELDS} | {"layer_group_policy": config.policy}


def changed(config: LayeredConfig, wanted: Any, num_layers: int) -> LayeredConfig:
    """``config`` with new values; those that ``wanted`` does not name take their defaults.

    Raises:
        ConfigError: one line.
    """
    if not isinstance(wanted, Mapping):
        raise ConfigError(f"expected an object with some of {', '.join(FIELDS)}")
    for name, value in wanted.items():
        if name not in FIELDS:
            raise ConfigError(f"unknown field {name!r}; there are: {', '.join(FIELDS)}")
        numeric = _NUMBERS.get(name)
        if value is None:
            continue
        if numeric is None and value not in POLICIES:
            raise ConfigError(f"{name} must be one of {', '.join(POLICIES)}, got {value!r}")
        if numeric and (isinstance(value, bool) or not isinstance(value, numeric)):
            kind = "a number" if float in numeric else "a whole number"
            raise ConfigError(f"{name} must be {kind}, got {value!r}")
    # The estimator stays; a profile was named for it, not for the policy.
    taken: dict[str, Any] = {name: wanted.get(name) for name in FIELDS}
    new = dataclasses.replace(config, cost_profile=None, **taken)
    new.validate()
    groups = new.num_layer_groups
    if groups is not None and groups > num_layers:
        raise ConfigError(
            f"{flag_name('num_layer_groups')} {groups} is more than the model's {num_layers} layers; "
            f"choose 1 to {num_layers}"
        )
    return new


def pack(config: LayeredConfig) -> dict[str, float]:
    """Numbers for SGLang's request."""
    packed = {_PREFIX + name: value for name, value in values(config).items() if value is not None}
    return packed | {_PREFIX + "layer_group_policy": POLICIES.index(config.policy)}


def unpack(state: dict[str, Any], config: LayeredConfig, num_layers: int) -> LayeredConfig | None:
    """Takes our numbers out of SGLang's request; None where there are none."""
    wanted = {n: state.pop(_PREFIX + n) for n in FIELDS if _PREFIX + n in state}
    if not wanted:
        return None
    wanted["layer_group_policy"] = POLICIES[int(wanted["layer_group_policy"])]
    return changed(config, wanted, num_layers)
