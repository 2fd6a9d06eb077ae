"""Runs systems over traffic, with replicas spread over processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from layered_sglang.scheduling import CostModel, Estimator
from layered_sglang.simulator.replica import Replica
from layered_sglang.simulator.results import Outcome
from layered_sglang.simulator.router import route
from layered_sglang.simulator.systems import System
from layered_sglang.simulator.traffic import Traffic


@dataclass(frozen=True)
class Setup:
    """What is the same for all systems.

    Attributes:
        model: the cost model, also the planner's.
        kv_tokens: KV slots of a replica.
        max_running: most running requests of a replica.
        largest_graph: the largest batch that decode graphs were captured for; by default ``max_running``.
        max_prefill_tokens: most tokens of a cohort.
        noise, bias, host_noise: of reality against the model; see :class:`World`.
        seed: of the noise.
        estimator: what the planner predicts by and learns with, where it is not ``model``: a server's own
            figures. What it learns stays with it, for the next simulation in this process.
    """

    model: CostModel
    kv_tokens: int
    max_running: int = 256
    max_prefill_tokens: int = 8192
    noise: float = 0.0
    bias: float = 1.0
    seed: int = 0
    estimator: Estimator | None = None
    host_noise: float = 0.0
    largest_graph: int | None = None

    @property
    def differs(self) -> bool:
        """Whether the world is another than the planner's model."""
        return (
            max(self.noise, self.host_noise) > 0 or self.bias != 1.0 or self.estimator is not None
        )


def simulate_replica(system: System, setup: Setup, traffic: Traffic, number: int = 0) -> Outcome:
    """One replica from its first request to its last token."""
    sizes = system.graph_sizes(setup.largest_graph or setup.max_running)
    model = dataclasses.replace(setup.model, decode_sizes=sizes)
    seed = setup.seed * 1_000_003 + number
    world = system.world(model, setup.noise, setup.bias, seed, setup.host_noise)
    estimator = setup.estimator or system.estimator(model, setup.differs)
    schedule = system.schedule(estimator, setup.max_prefill_tokens, setup.differs)
    replica = Replica(traffic, schedule, world, setup.kv_tokens, setup.max_running)
    replica.run()
    return Outcome.of_replica(replica, traffic)


def simulate(
    system: System,
    setup: Setup,
    traffic: Traffic,
    replicas: int = 1,
    router: str = "round-robin",
    processes: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """All replicas. The result does not depend on ``processes`` (all CPUs by default).

    ``progress`` is told the number of requests that are done.
    """
    chosen: np.ndarray = route(router, traffic, replicas, setup.model)
    by_replica: np.ndarray = np.argsort(chosen, kind="stable")
    borders: np.ndarray = np.asarray(np.searchsorted(chosen[by_replica], np.arange(replicas + 1)))
    parts = [by_replica[borders[r] : borders[r + 1]] for r in range(replicas)]
    jobs = ((system, setup, traffic.part(part), r) for r, part in enumerate(parts) if len(part))
    processes = min(processes or len(os.sched_getaffinity(0)), replicas)
    outcome = Outcome.empty(traffic)
    outcomes = _outcomes(jobs, processes)
    for part, one in zip((part for part in parts if len(part)), outcomes, strict=True):
        outcome.add(one, part)
        progress(outcome.done)
    return outcome


def _outcomes(jobs: Iterator[tuple], processes: int) -> Iterator[Outcome]:
    if processes == 1:
        yield from (simulate_replica(*job) for job in jobs)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap(_simulate_job, jobs, chunksize=1)


def _simulate_job(job: tuple) -> Outcome:
    return simulate_replica(*job)
