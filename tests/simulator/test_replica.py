"""The simulated server: nothing is lost, the same traffic gives the same result, times add up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layered_sglang.model_zoo.published import QWEN3_8B, QWEN3_30B_A3B
from layered_sglang.scheduling import CohortWork, CostModel, DecodeWork, Estimator, ModelShape
from layered_sglang.scheduling.devices import nominal_coefficients
from layered_sglang.simulator.gaps import Gaps
from layered_sglang.simulator.replica import Replica, Request
from layered_sglang.simulator.run import Setup, simulate, simulate_replica
from layered_sglang.simulator.systems import System
from layered_sglang.simulator.traffic import Traffic, make_traffic
from layered_sglang.simulator.world import Times, World

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
    world = system.world(MODEL, merged.noise, merged.bias, merged.seed)
    estimator = system.estimator(MODEL, merged.differs)
    schedule = system.schedule(estimator, merged.max_prefill_tokens, merged.differs)
    replica = Replica(requests, schedule, world, merged.kv_tokens, merged.max_running)
    replica.run()  # asserts that no request and no KV slot is left at its end
    return replica


@every_system
@settings(max_examples=25)
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
@settings(max_examples=25)
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


@every_system
def test_one_request_takes_its_prefill_and_then_its_decode_iterations(system):
    """The host is longer with this prefill than the GPU, and launches a decode iteration before it looks
    for the first token."""
    outcome = simulate_replica(system, SETUP, traffic((1.0, 400, 4)))
    model = dataclasses.replace(MODEL, decode_sizes=system.graph_sizes(256))
    world = system.world(model, 0.0, 1.0, 0)
    prefill = max(world.prefill(CohortWork.of_prompt(400)))
    decode = [world.decode(1, 400 + i)[0] for i in range(3)]
    assert outcome.ttft[0] == pytest.approx(prefill + world.launch_decode)
    assert outcome.e2e[0] == pytest.approx(prefill + sum(decode))
    assert outcome.worst[0] == pytest.approx(max(decode))
    assert outcome.finished_at == pytest.approx(1.0 + outcome.e2e[0])


@pytest.mark.parametrize("overlap", [True, False])
def test_a_prompt_beside_a_stream_by_hand(overlap):
    """One stream; a prompt of 1024 tokens comes: two layer groups, against SGLang's whole prefill.

    With overlap the iteration after the one in which it comes is planned already; and the token before a
    whole prefill, whose launch takes long, is seen when that is launched.
    """
    model = dataclasses.replace(MODEL, overlap=overlap)
    setup = dataclasses.replace(SETUP, model=model)
    requests = traffic((0.0, 400, 60), (0.1, 1024, 2))
    work = CohortWork.of_prompt(1024)

    def until_it_is_planned(world):
        start = world.prefill(CohortWork.of_prompt(400))
        ticks, now, begun = 0, max(start) if overlap else sum(start), 0.0
        while (begun if overlap else now) < 0.1:
            begun = now
            now += world.decode(1, 400 + ticks)[0]
            ticks += 1
        return ticks, now, begun

    fixed = simulate_replica(System("fixed", 512), setup, requests)
    ticks, now, _ = until_it_is_planned(System("fixed", 512).world(model, 0.0, 1.0, 0))
    lines = [model.merged(DecodeWork(1, 400 + ticks + i), work) for i in (0, 1)]
    groups = [lines[0].at(True, False).seconds(24), lines[1].at(False, True).seconds(24)]
    assert fixed.ttft[1] == pytest.approx(now - 0.1 + sum(groups))
    assert fixed.worst[0] == pytest.approx(max(groups))

    first = simulate_replica(System("chunked", 8192), setup, requests)
    world = System("chunked", 8192).world(model, 0.0, 1.0, 0)
    ticks, now, begun = until_it_is_planned(world)
    device, host = world.prefill(work)
    if overlap:
        assert begun + host > now + device, "the host is longer with it than the GPU"
        assert first.ttft[1] == pytest.approx(begun + host - 0.1 + world.launch_decode)
        assert first.worst[0] == pytest.approx(host)
    else:
        assert first.ttft[1] == pytest.approx(now - 0.1 + device + host)
        gap = device + host + world.decode(2, 1424 + ticks)[0]
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


def test_a_long_launch_lets_everyone_see_the_last_token_late_and_the_next_one_early():
    """Three streams; launching a prefill takes 60 ms, the decode iteration before it 10."""
    replica = run(System("fixed", 512), traffic((0.0, 1, 1)))  # done: its clock and gaps are used
    replica.running = {i: Request(i, 0.0, 10, 9, -1) for i in range(3)}
    replica.joiners = [replica.running[2]]
    replica.gaps, replica.now, replica.last_decode, replica.seen = Gaps(), 1.01, 1.0, 1.0
    replica.running[2].last = replica.running[2].first = 1.01
    replica.running[2].generated, replica._unseen = 1, True
    replica.gaps.add(0.01, 2)
    replica.gaps.note(7, 0.01)
    replica.ticks, replica.last_decode, replica._last_gaps = 7, 1.01, (0.01, 0.01)
    measured: list[tuple[float, bool]] = []

    def measure(seconds: float, before_long_launch: bool) -> None:
        measured.append((seconds, before_long_launch))

    replica.measure, replica._result, replica._launched = measure, 1.0, 0.99
    replica.advance(Times(0.03, 0.06), launches_long=True)
    replica.measure = measure
    assert replica.last_decode == replica.running[2].first == pytest.approx(1.06)
    assert replica.gaps.worst_after(6) == pytest.approx(0.06)
    assert replica.gaps.total == pytest.approx(2 * 0.06) and replica.gaps.count == 2
    assert replica.seen == replica.now == pytest.approx(1.06)  # the GPU was done before the launch
    replica.advance(Times(0.03, 0.001))
    assert (replica.seen, replica.now) == (pytest.approx(1.061), pytest.approx(1.09))
    # From result to result.
    assert measured == [(pytest.approx(0.06), True), (pytest.approx(0.001), False)]


def test_stocks_kernels_cost_what_was_measured():
    """The whole layer's experts by Triton against the fused experts', and a mixed chunk's decode rows."""
    world = System("mixed", 512).world(MODEL, 0.0, 1.0, 0)
    plain = World(MODEL)
    for tokens, least, most in ((512, 0, 0), (8192, 0.2e-3, 0.6e-3)):
        work = CohortWork.of_prompt(tokens)
        more = (world.prefill(work).device - plain.prefill(work).device) / 48
        assert least * 0.9 - 3e-6 <= more <= most
    assert world.decode(4, 4000)[0] / plain.decode(4, 4000)[0] == pytest.approx(1.03, abs=0.02)
    chunk = CohortWork.of_prompt(500, 4000)
    alone = world.mixed(DecodeWork(0, 0), chunk, 4500).device
    few, more = (world.mixed(DecodeWork(n, n * 8000), chunk, 8000).device - alone for n in (2, 8))
    assert few == pytest.approx(more, abs=0.2e-3), "the longest row's tile, however many rows"
    long = world.mixed(DecodeWork(8, 64_000), chunk, 26_000).device - alone
    assert long > few + 8e-3, "one long row is waited for"
    many = world.mixed(DecodeWork(64, 64 * 8000), chunk, 8000).device - alone
    assert many > 2 * more, "so many rows keep the GPU busy"
    dense = ModelShape.from_config(QWEN3_8B)
    small = dataclasses.replace(MODEL, shape=dense)
    assert System("chunked", 512).world(small, 0.0, 1.0, 0)._experts_more(8192) == 0


@pytest.mark.parametrize("kind", ["slo", "fixed"])
def test_a_planner_with_figures_of_its_own_learns_the_world_s(kind):
    """One that takes everything for a third cheaper than it is; decode is learnt, too."""
    estimator = Estimator(dataclasses.replace(MODEL))
    requests = make_traffic(
        requests=200, rate=4.0, arrival="poisson", prompts="lognormal:4000,9000", outputs="const:40"
    )
    setup = Setup(MODEL, 600_000, bias=1.5, estimator=estimator)
    simulate(System(kind, 40 if kind == "slo" else 512), setup, requests, processes=1)
    assert estimator.correction.decode == pytest.approx(1.5, rel=0.05)
    assert estimator.correction.cohort == pytest.approx(1.5, rel=0.1)
