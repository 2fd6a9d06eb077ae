"""Streams that own a part of the GPU's multiprocessors (SMs), through CUDA's green contexts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Lane(NamedTuple):
    """A stream, and the SMs that its kernels may use; ``None``: all of the device."""

    stream: torch.cuda.Stream
    sms: int | None


class Partitioning(NamedTuple):
    """Two lanes without a common SM. ``keep`` holds the contexts alive."""

    first: Lane
    second: Lane
    keep: list[Any]


def split_device(first_sms: int) -> Partitioning:
    """Split the current device's SMs into about ``first_sms``, as the hardware can, and the rest.

    Raises:
        RuntimeError: CUDA refused; the message names the call.
    """
    from cuda.bindings import driver

    torch.cuda.current_stream().synchronize()  # the primary context is there and current
    device = _checked("cuDeviceGet", driver.cuDeviceGet(torch.cuda.current_device()))
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = _checked("cuDeviceGetDevResource", driver.cuDeviceGetDevResource(device, kind))
    split = driver.cuDevSmResourceSplitByCount(1, whole, 0, first_sms)
    groups, _, rest = _checked("cuDevSmResourceSplitByCount", split)
    lanes, keep = [], []
    for resource in (groups[0], rest):
        descriptor = _checked(
            "cuDevResourceGenerateDesc", driver.cuDevResourceGenerateDesc([resource], 1)
        )
        flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        context = _checked(
            "cuGreenCtxCreate", driver.cuGreenCtxCreate(descriptor, device, int(flags))
        )
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = _checked(
            "cuGreenCtxStreamCreate", driver.cuGreenCtxStreamCreate(context, int(flags), 0)
        )
        lanes.append(Lane(torch.cuda.ExternalStream(int(stream)), resource.sm.smCount))
        keep += [context, stream]
    return Partitioning(lanes[0], lanes[1], keep)


def _checked(call: str, answer: tuple[Any, ...]) -> Any:
    error, *values = answer
    if int(error) != 0:
        raise RuntimeError(f"{call} failed: {error}")
    return values[0] if len(values) == 1 else values
