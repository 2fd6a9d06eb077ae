"""The simulated server: nothing is lost, the same traffic gives the same result, times add up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layered_sglang.model_zoo.published import QWEN3_30B_A3B
from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork, ModelShape
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.simulator.replica import Replica
from layered_sglang.simulator.run import Setup, simulate, simulate_replica
from layered_sglang.simulator.systems import System
from layered_sglang.simulator.traffic import Traffic, make_traffic
from layered_sglang.simulator.world import World

MODEL = CostModel(ModelShape.from_config(QWEN3_30B_A3B), nominal_coefficients("H200")[0], 4096)
SETUP = Setup(MODEL, kv_tokens=600_000)
SYSTEMS = [
    *(System("slo", 30), System("fixed", 512), System("groups", 8)),
    *(System("chunked", 2048), System("mixed", 512)),
]
every_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)


def traffic(*requests: tuple[float, int, int], shared: int = 0) -> Traffic:
    """(arrival, prompt, output) each; with ``shared`` all are of one group."""
    arrival, prompt, output = zip(*requests, strict=True)
    group = np.full(len(requests), 0 if shared else -1)
    return Traffic(np.array(arrival), np.array(prompt), np.array(output), group, shared)


drawn = st.lists(
    st.tuples(st.floats(0, 5), st.integers(1, 9000), st.integers(1, 300)), min_size=1, max_size=30
).map(lambda rows: traffic(*sorted(rows)))


def run(system: System, requests: Traffic, **setup) -> Replica:
    merged = Setup(**({"model": MODEL, "kv_tokens": 600_000} | setup))
    world = World(MODEL, merged.noise, merged.bias, merged.seed)
    schedule = system.schedule(MODEL, merged.max_prefill_tokens, merged.differs)
    replica = Replica(requests, schedule, world, merged.kv_tokens, merged.max_running)
    replica.run()  # asserts that no request and no KV slot is left at its end
    return replica


@every_system
@settings(deadline=None, max_examples=25)
@given(requests=drawn, running=st.sampled_from([1, 3, 256]), noise=st.sampled_from([0.0, 0.2]))
def test_every_request_gets_its_tokens_and_every_prompt_token_is_computed_once(
    system, requests, running, noise
):
    replica = run(system, requests, max_running=running, noise=noise)
    assert not np.isnan(replica.e2e).any() and (replica.ttft > 0).all()
    assert (replica.e2e >= replica.ttft).all()
    assert replica.computed_tokens == requests.prompt.sum()
    assert replica.gaps.count == (requests.output - 1).sum()
    # Every request's gaps are its time after the first token.
    assert replica.gaps.total == pytest.approx((replica.e2e - replica.ttft).sum(), abs=1e-6)


@every_system
@settings(deadline=None, max_examples=25)
@given(requests=drawn)
def test_a_small_kv_cache_is_never_overfilled_and_retraction_loses_no_token(system, requests):
    kv = int((requests.prompt + requests.output).max()) + 40
    replica = run(system, requests, kv_tokens=kv)
    assert replica.kv_peak <= kv
    assert not np.isnan(replica.e2e).any()
    assert replica.gaps.count == (requests.output - 1).sum()
    assert replica.computed_tokens >= requests.prompt.sum()
    if replica.retractions == 0:
        assert replica.computed_tokens == requests.prompt.sum()


@every_system
def test_retraction_happens_and_computes_again(system):
    requests = traffic(*((0.001 * i, 100, 900) for i in range(10)))
    replica = run(system, requests, kv_tokens=4000)
    assert replica.retractions > 0 and replica.computed_tokens > 1000
    assert replica.kv_peak <= 4000


@every_system
def test_the_same_traffic_gives_the_same_result_in_any_number_of_processes(system):
    requests = make_traffic(
        requests=300, rate=40, arrival="gamma:2", prompts="lognormal:300,2000", outputs="const:40"
    )
    setup = Setup(MODEL, 600_000, noise=0.1, bias=1.1)
    one, two = (simulate(system, setup, requests, 4, processes=p) for p in (1, 2))
    for name in ("ttft", "e2e", "worst", "gaps"):
        assert (getattr(one, name) == getattr(two, name)).all()
    assert one.joules == two.joules


def test_one_request_takes_its_prefill_and_then_its_decode_iterations():
    for system in SYSTEMS:
        outcome = simulate_replica(system, SETUP, traffic((1.0, 400, 4)))
        prefill = MODEL.prefill(CohortWork.of_prompt(400)).seconds()
        decode = [MODEL.decode(DecodeWork(1, 400 + i)).seconds() for i in range(3)]
        assert outcome.ttft[0] == pytest.approx(prefill)
        assert outcome.e2e[0] == pytest.approx(prefill + sum(decode))
        assert outcome.worst[0] == pytest.approx(max(decode))
        assert outcome.finished_at == pytest.approx(1.0 + outcome.e2e[0])


@pytest.mark.parametrize("overlap", [True, False])
def test_a_prompt_beside_a_stream_by_hand(overlap):
    """One stream; a prompt of 1024 tokens comes: two layer groups, against SGLang's whole prefill.

    With overlap the iteration after the one in which it comes is planned already.
    """
    model = dataclasses.replace(MODEL, overlap=overlap)
    setup = dataclasses.replace(SETUP, model=model)
    requests = traffic((0.0, 400, 60), (0.05, 1024, 1))
    start = model.prefill(CohortWork.of_prompt(400)).seconds()
    ticks, now, begun = 0, start, 0.0
    while (begun if overlap else now) < 0.05:
        begun = now
        now += model.decode(DecodeWork(1, 400 + ticks)).seconds()
        ticks += 1
    work = CohortWork.of_prompt(1024)
    groups = [model.merged(DecodeWork(1, 400 + ticks + i), work).seconds(24) for i in (0, 1)]
    fixed = simulate_replica(System("fixed", 512), setup, requests)
    assert fixed.ttft[1] == pytest.approx(now - 0.05 + sum(groups))
    assert fixed.worst[0] == pytest.approx(max(groups))
    whole = model.prefill(work).seconds()
    first = simulate_replica(System("chunked", 8192), setup, requests)
    assert first.ttft[1] == pytest.approx(now - 0.05 + whole)
    gap = whole + model.decode(DecodeWork(1, 400 + ticks)).seconds()
    assert first.worst[0] == pytest.approx(gap)


def test_a_cached_prefix_is_not_computed_again():
    requests = traffic((0.0, 3000, 2), (1.0, 3000, 2), shared=2900)
    for system in SYSTEMS:
        replica = run(system, requests)
        assert replica.computed_tokens == 3000 + 100
        assert replica.ttft[1] < replica.ttft[0]


def test_expert_bytes_are_those_of_the_layers_that_ran():
    outcome = simulate_replica(System("chunked", 8192), SETUP, traffic((0.0, 400, 3)))
    shape = MODEL.shape
    expected = 48 * shape.expert_params * 2
    expected *= shape.experts_reached(400) + 2 * shape.experts_reached(1)
    assert outcome.expert_bytes == pytest.approx(expected)
