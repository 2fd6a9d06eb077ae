"""What is measured beside the requests: GPU energy, clocks and power, KV use, versions, hardware."""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GPU_SECONDS = 0.25
#: What SGLang's log tells with its batches, and what we call it.
LOGGED = {
    "running_requests": re.compile(r"#running-req: (\d+)"),
    "queued_requests": re.compile(r"#queue-req: (\d+)"),
    "kv_use": re.compile(r", (?:full )?token usage: (\d+\.\d+)"),
}


class Gpus:
    """The NVIDIA GPUs that servers started here can use, through NVML; none where there is no driver.

    Those of ``CUDA_VISIBLE_DEVICES`` where it is set: another's GPU of this machine is not measured.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handles = _visible(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        except Exception:  # no module, no driver, no permission: then nothing is measured
            return

    def __len__(self) -> int:
        return len(self._handles)

    def energy(self) -> float | None:
        """Joules since the driver was loaded, all GPUs together; None where it is not counted."""
        try:
            return (
                sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1000 for h in self._handles)
                or None
            )
        except Exception:
            return None

    def sample(self) -> dict[str, float]:
        """Power in watts (all GPUs), SM and memory clocks in MHz and utilisation (the first)."""
        values: dict[str, float] = {}
        nvml, handles = self._nvml, self._handles
        if not handles:
            return values
        for name, read in (
            ("power_w", lambda: sum(nvml.nvmlDeviceGetPowerUsage(h) for h in handles) / 1000),
            ("sm_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handles[0], nvml.NVML_CLOCK_SM)),
            ("memory_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handles[0], nvml.NVML_CLOCK_MEM)),
            ("temperature_c", lambda: nvml.nvmlDeviceGetTemperature(handles[0], 0)),
        ):
            try:
                values[name] = float(read())
            except Exception:  # not every GPU tells everything
                continue
        return values

    def describe(self) -> list[str]:
        """Name, memory and driver of each."""
        lines = []
        for handle in self._handles:
            name = self._nvml.nvmlDeviceGetName(handle)
            total = self._nvml.nvmlDeviceGetMemoryInfo(handle).total
            driver = self._nvml.nvmlSystemGetDriverVersion()
            text = [x.decode() if isinstance(x, bytes) else x for x in (name, driver)]
            lines.append(f"{text[0]}, {total / 2**30:.0f} GiB, driver {text[1]}")
        return lines


def _visible(nvml: Any, visible: str | None) -> list[Any]:
    """Handles of the GPUs that ``CUDA_VISIBLE_DEVICES`` names by number or by the start of their UUID."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if visible is None:
        return handles
    chosen = []
    for name in visible.replace(" ", "").split(","):
        if name.isdecimal():
            found = handles[int(name) : int(name) + 1]
        else:
            uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
            texts = [u.decode() if isinstance(u, bytes) else u for u in uuids]
            found = [h for h, u in zip(handles, texts, strict=True) if name and u.startswith(name)]
        if not found:  # CUDA, too, ends the list at a name that there is not
            break
        chosen += found
    return chosen


class Meter:
    """Samples the GPUs during a run, on a thread of its own, and reads what the server logged in it.

    NOTE: the server itself is asked for nothing meanwhile. SGLang's own collects /metrics on the thread
    that passes tokens on, for 10 to 35 ms, in which no client gets any.

    Args:
        log: of an SGLang server, or None.
    """

    def __init__(self, gpus: Gpus, log: Path | None) -> None:
        self._gpus = gpus
        self._log = log
        self._begin = 0
        self._samples: dict[str, list[float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._energy: float | None = None

    def __enter__(self) -> Meter:
        if self._log is not None:
            self._begin = self._log.stat().st_size
        self._energy = self._gpus.energy()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def result(self) -> dict[str, Any]:
        """Joules since the start, and mean and maximum of each sampled value and of each logged one."""
        end = self._gpus.energy()
        energy = end - self._energy if end is not None and self._energy is not None else None
        values = dict(self._samples)
        if self._log is not None:
            values |= read_log(self._log, self._begin)
        return {
            "energy_j": energy,
            "sampled": {
                name: {"mean": round(sum(v) / len(v), 4), "max": round(max(v), 4)}
                for name, v in values.items()
            },
        }

    def _run(self) -> None:
        while not self._stop.wait(GPU_SECONDS):
            for name, value in self._gpus.sample().items():
                self._samples.setdefault(name, []).append(value)


def read_log(log: Path, begin: int) -> dict[str, list[float]]:
    """What an SGLang server logged of LOGGED after byte ``begin`` of its log: at each batch with prompts
    and at every 40th one without, each scheduler for itself."""
    with open(log, "rb") as file:
        file.seek(begin)
        text = file.read().decode(errors="replace")
    found = {name: pattern.findall(text) for name, pattern in LOGGED.items()}
    return {name: [float(value) for value in values] for name, values in found.items() if values}


def server_info(url: str) -> dict[str, Any]:
    """SGLang's ``/server_info``, or an empty mapping."""
    text = fetch(url + "/server_info")
    try:
        info = json.loads(text) if text else {}
    except ValueError:
        return {}
    if not isinstance(info, dict):
        return {}
    info.pop("internal_states", None)  # what it did so far, not what it is
    return info


def first_model(url: str) -> str:
    """The first model that an OpenAI-compatible endpoint lists, or ``default``."""
    try:
        return str(json.loads(fetch(url + "/v1/models") or "")["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        return "default"


def fetch(url: str, method: str = "GET", seconds: float = 5.0) -> str | None:
    """The body of a successful answer, or None."""
    try:
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return response.read().decode(errors="replace")
    except (urllib.error.URLError, OSError, ValueError):
        return None


def describe_machine(gpus: Gpus) -> dict[str, Any]:
    """Hardware and versions, for the report."""
    packages = {}
    for name in ("sglang", "torch", "triton", "flashinfer-python", "sglang-kernel"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    import layered_sglang

    packages["layered-sglang"] = layered_sglang.__version__
    return {
        "gpus": gpus.describe(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "packages": packages,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()
