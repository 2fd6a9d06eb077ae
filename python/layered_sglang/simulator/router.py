"""Which replica serves a request? Decided from arrivals and estimates alone, as routers without
feedback do; so replicas can be simulated apart."""

from __future__ import annotations

import heapq

import numpy as np

from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork
from layered_sglang.simulator.traffic import Traffic

ROUTERS = ("round-robin", "least-loaded", "prefix-aware")
#: A replica that holds the prefix is left for the least loaded one where it is behind by more than
#: this many seconds of estimated work.
PATIENT = 0.5


def route(router: str, traffic: Traffic, replicas: int, model: CostModel) -> np.ndarray:
    """The replica of each request, int64 [n]."""
    n = len(traffic)
    if replicas == 1:
        return np.zeros(n, dtype=np.int64)
    if router == "round-robin":
        return np.arange(n) % replicas
    service = _service_seconds(traffic, model).tolist()
    chosen: np.ndarray = np.empty(n, dtype=np.int64)
    free = [(0.0, replica) for replica in range(replicas)]  # a heap; entries may be out of date
    free_at = [0.0] * replicas
    holder: dict[int, int] = {}
    times, groups = traffic.arrival.tolist(), traffic.group.tolist()
    for i, (now, group) in enumerate(zip(times, groups, strict=True)):
        while free[0][0] < free_at[free[0][1]]:
            _, behind = heapq.heappop(free)
            heapq.heappush(free, (free_at[behind], behind))
        replica = free[0][1]
        if router == "prefix-aware" and group >= 0:
            held = holder.get(group)
            if held is not None and free_at[held] <= max(now, free_at[replica]) + PATIENT:
                replica = held
            holder[group] = replica
        chosen[i] = replica
        free_at[replica] = max(now, free_at[replica]) + service[i]
    return chosen


def _service_seconds(traffic: Traffic, model: CostModel) -> np.ndarray:
    """What each request costs a replica: its prefill, and its share of decode in a batch of 32."""
    sample = CohortWork.of_prompt(2048)
    per_token = model.prefill(sample).seconds() / sample.tokens
    each = int(traffic.prompt.mean() + traffic.output.mean() / 2)
    decode = model.decode(DecodeWork(32, 32 * each)).seconds() / 32
    return traffic.prompt * per_token + traffic.output * decode
