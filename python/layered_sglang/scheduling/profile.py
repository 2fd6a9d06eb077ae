"""Cost profiles: fitted coefficients of one GPU × model × attention backend, as a JSON file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layered_sglang.scheduling.cost_model import Coefficients
from layered_sglang.scheduling.model_shape import num_experts

VERSION = 1


class ProfileError(ValueError):
    """A file that is no profile. The message is one line: which file, what, what to do."""


@dataclass(frozen=True)
class CostProfile:
    """What ``python -m layered_sglang.calibrate`` writes.

    Attributes:
        device: the GPU's name as CUDA gives it; ``"cpu"`` on a machine without one.
        model: the model's architecture and sizes (:func:`model_key`).
        attention: the attention backend.
        tp_size: tensor-parallel ranks.
        coefficients: the fit.
        spread: of the router (:data:`~layered_sglang.scheduling.model_shape.SPREAD_TRAINED`).
        quality: the fit's errors on iterations it has not seen; free-form.
        made: date, command and versions; free-form.
    """

    device: str
    model: str
    attention: str
    tp_size: int
    coefficients: Coefficients
    spread: float = 1.0
    quality: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def fits(self, device: str, model: str, attention: str, tp_size: int) -> bool:
        return (self.device, self.model, self.attention, self.tp_size) == (
            device,
            model,
            attention,
            tp_size,
        )

    def write(self, path: Path) -> None:
        record = {"version": VERSION, **dataclasses.asdict(self)}
        path.write_text(json.dumps(record, indent=2) + "\n")

    @staticmethod
    def read(path: Path) -> CostProfile:
        """Read and check a profile.

        Raises:
            ProfileError: one line that names the file and what is wrong with it.
        """
        again = "; write it again with python -m layered_sglang.calibrate"
        try:
            record = json.loads(path.read_text())
            version = record.pop("version")
            if version != VERSION:
                raise ProfileError(f"{path}: version {version}, expected {VERSION}{again}")
            record["coefficients"] = Coefficients(**record["coefficients"])
            return CostProfile(**record)
        except OSError as error:
            raise ProfileError(f"{path}: {error.strerror}") from error
        except ProfileError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ProfileError(f"{path}: no cost profile ({error}){again}") from error


def model_key(config: dict[str, Any]) -> str:
    """What tells models apart that cost differently: architecture, layers, hidden size, experts."""
    name = (config.get("architectures") or ["?"])[0]
    layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
    return f"{name} {layers}x{hidden} experts {num_experts(config)}"


def find_profile(
    folder: Path, device: str, model: str, attention: str, tp_size: int
) -> tuple[CostProfile, Path] | None:
    """The profile in ``folder`` that fits, if there is one."""
    for path in sorted(folder.glob("*.json")):
        profile = CostProfile.read(path)
        if profile.fits(device, model, attention, tp_size):
            return profile, path
    return None
