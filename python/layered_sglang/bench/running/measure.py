"""What is measured beside the requests: GPU energy, clocks and power, KV use, versions, hardware."""

from __future__ import annotations

import json
import os
import platform
import threading
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from typing import Any

GPU_SECONDS = 0.25
#: Rounds of the GPU's sampling between two looks at the server's metrics.
METRICS_EVERY = 4
#: SGLang's gauges on /metrics and what we call them.
GAUGES = {
    "sglang:num_running_reqs": "running_requests",
    "sglang:num_queue_reqs": "queued_requests",
    "sglang:token_usage": "kv_use",
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
    """Samples GPU and server during a run, on a thread of its own.

    Args:
        url: of an SGLang server whose /metrics is read, or None.
    """

    def __init__(self, gpus: Gpus, url: str | None) -> None:
        self._gpus = gpus
        self._url = url
        self._samples: dict[str, list[float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._energy: float | None = None

    def __enter__(self) -> Meter:
        self._energy = self._gpus.energy()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def result(self) -> dict[str, Any]:
        """Joules since the start, and mean and maximum of each sampled value."""
        end = self._gpus.energy()
        energy = end - self._energy if end is not None and self._energy is not None else None
        return {
            "energy_j": energy,
            "sampled": {
                name: {"mean": round(sum(v) / len(v), 4), "max": round(max(v), 4)}
                for name, v in self._samples.items()
            },
        }

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(GPU_SECONDS):
            values = self._gpus.sample()
            if self._url is not None and count % METRICS_EVERY == 0:
                values |= read_gauges(self._url)
            for name, value in values.items():
                self._samples.setdefault(name, []).append(value)
            count += 1


def read_gauges(url: str) -> dict[str, float]:
    """SGLang's gauges of GAUGES, summed over schedulers; empty when it does not tell."""
    values: dict[str, float] = {}
    for line in (fetch(url + "/metrics") or "").splitlines():
        name = line.split("{")[0]
        if name in GAUGES and "{" in line:
            key = GAUGES[name]
            values[key] = values.get(key, 0.0) + float(line.rsplit(" ", 1)[1])
    return values


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
