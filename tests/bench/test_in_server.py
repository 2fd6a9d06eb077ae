"""What the benchmark adds to servers: expert counts, the shaped router."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from layered_sglang.bench.in_server import plugin
from layered_sglang.bench.in_server.expert_loads import ExpertLoads
from layered_sglang.bench.in_server.shaped_router import Routers, coverage
from layered_sglang.bench.running.expert_bytes import read_expert_loads
from layered_sglang.bench.running.launch import make_launch
from layered_sglang.bench.spec.scenario import find_scenario, load_scenario


class TopK(torch.nn.Module):
    """By its name SGLang's."""


class Layer(torch.nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.topk = TopK()
        self.w13_weight = torch.nn.Parameter(torch.zeros(experts, 6, 4))
        self.w2_weight = torch.nn.Parameter(torch.zeros(experts, 4, 3))
        self.gate = torch.nn.Linear(64, experts, bias=False)


def ids(*rows):
    return SimpleNamespace(topk_ids=torch.tensor(rows, dtype=torch.int32))


def last_line(path, iterations):
    """What a thread of the server's own has written by when it has counted as many ``iterations``."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if path.exists() and (found := path.read_text().rpartition("\n")[0].splitlines()):
            last = json.loads(found[-1])
            if sum(last["iterations"].values()) == iterations:
                return last
    raise AssertionError("it was not written")


def test_distinct_experts_are_counted_per_layer_and_iteration(tmp_path):
    model = torch.nn.ModuleList([Layer(8), Layer(8)])
    loads = ExpertLoads.of_model(model, str(tmp_path / "loads"), time.monotonic)
    assert loads is not None
    first, second = (layer.topk for layer in model)
    loads.routed(first, ids([0, 7]))  # a warm-up before the first iteration: not counted
    loads.iteration_ends()
    loads.iteration_begins("decode")
    loads.routed(first, ids([1, 2], [2, 1], [2, 3]))  # 3
    loads.routed(second, ids([5, -1], [-1, -1]))  # 1; -1 is no expert
    loads.iteration_ends()
    loads.iteration_begins("prompts")
    loads.routed(first, ids([1, 2]))  # 2, though they were loaded before
    histogram = SimpleNamespace(expt_hist=torch.tensor([0, 3, 0, 0, 1, 0, 0, 9]))
    loads.routed(second, SimpleNamespace(routing_data=histogram))  # 3
    loads.iteration_ends()
    last = last_line(tmp_path / "loads", 2)
    assert last["loads"] == {"decode": 4, "prompts": 5}
    assert last["iterations"] == {"decode": 1, "prompts": 1}
    assert last["bytes_per_expert"] == (6 * 4 + 4 * 3) * 4


def test_a_dense_model_has_nothing_to_count(tmp_path):
    model = torch.nn.Linear(2, 2)
    assert ExpertLoads.of_model(model, str(tmp_path / "loads"), time.monotonic) is None


def test_a_run_s_loads_are_differences(tmp_path):
    path = tmp_path / "loads"
    told = [(1.0, 10), (5.0, 30), (9.0, 70), (20.0, 999)]
    records = [
        {
            "time": t,
            "bytes_per_expert": 3,
            "loads": {"decode": n},
            "iterations": {"decode": n // 10},
        }
        for t, n in told
    ]
    path.write_text("\n".join(map(json.dumps, records)) + '\n{"time"')
    expected = {"bytes_per_expert": 3, "loads": {"decode": 60}, "iterations": {"decode": 6}}
    assert read_expert_loads(path, 2.0, 9.0) == {"experts": expected}
    assert read_expert_loads(path, 10.0, 11.0) == {}
    assert read_expert_loads(tmp_path / "none", 0.0, 1.0) == {}


def test_sglang_s_own_schedule_changes_and_goes_back_to_its_flags():
    flags = SimpleNamespace(chunked_prefill_size=512, enable_mixed_chunk=True)
    scheduler = SimpleNamespace(server_args=flags, chunked_prefill_size=512, is_mixed_chunk=True)
    left = []

    def tell(**values):
        request = SimpleNamespace(server_args=values)
        plugin._around_set_internal_state(
            lambda _, request: left.append(request.server_args), scheduler, request
        )
        return scheduler.chunked_prefill_size, scheduler.is_mixed_chunk

    chunks, mixed = plugin.CHUNKS_KEY, plugin.MIXED_KEY
    assert tell(**{chunks: 8192, mixed: 0}) == (8192, False)
    assert tell(**{mixed: 1}) == (8192, True)
    assert tell(**{mixed: 0, "other": 2}) == (8192, False)
    assert tell(**{chunks: plugin.AS_STARTED, mixed: plugin.AS_STARTED}) == (512, True)
    assert left == [{}, {}, {"other": 2}, {}], "SGLang refuses keys that it does not know"


def test_the_shaped_router_reaches_the_published_share_of_experts():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"mlp": Layer(128)})
    hidden = torch.randn(16_384, 64)
    gate = model["mlp"].gate
    torch.nn.init.orthogonal_(gate.weight)
    uniform = (hidden @ torch.nn.functional.normalize(gate.weight).T).topk(8).indices
    assert coverage(uniform, 128, 32) == pytest.approx(0.87, abs=0.02)
    gate.weight.data = torch.nn.functional.normalize(gate.weight.data)
    routers, loaded = Routers(model), gate.weight.data.clone()
    assert len(routers) == 1
    assert torch.equal(gate.weight.data, loaded), "not before it is told to"
    routers.set(True)
    shaped = (hidden @ gate.weight.T).topk(8).indices
    reached = [coverage(shaped, 128, tokens) for tokens in (16, 32, 64, 128)]
    assert reached == pytest.approx([0.44, 0.55, 0.70, 0.86], abs=0.03)
    assert reached[0] < 0.5
    once = gate.weight.data.clone()
    routers.set(True)
    assert torch.equal(gate.weight.data, once), "twice is once"
    routers.set(False)
    assert torch.equal(gate.weight.data, loaded)


def test_servers_are_told_of_the_plugin_when_it_is_wanted(tmp_path):
    plain = load_scenario(find_scenario("quick"))
    wanted = load_scenario(find_scenario("quick"), ["expert_bytes=true", "router=shaped"])
    trace = tmp_path / "t.jsonl"
    for system in range(2):
        launch = make_launch(plain, plain.systems[system], "m", tmp_path, True, trace)
        assert launch.environment == {}
        assert launch.experts is None
        assert not launch.shapes_router
        launch = make_launch(wanted, wanted.systems[system], "m", tmp_path, True, trace)
        assert launch.experts == tmp_path / "t.experts"
        assert launch.environment["LAYERED_SGLANG_BENCH_ROUTER"] == "1"
        assert launch.shapes_router
        folder = launch.environment["PYTHONPATH"].split(":")[0]
        (points,) = (tmp_path / "layered_sglang_bench").glob("*.dist-info/entry_points.txt")
        assert folder == str(points.parent.parent)
        assert "in_server.plugin:activate" in points.read_text()


def test_a_draft_is_written_for_servers_that_speculate(tmp_path):
    drafted = ["model.draft=eagle3", "systems.layered.flags=--speculative-algorithm EAGLE3"]
    scenario = load_scenario(find_scenario("quick"), drafted)
    systems = {system.name: system for system in scenario.systems}
    commands = {
        name: make_launch(scenario, system, "m", tmp_path, False, tmp_path / "t").command
        for name, system in systems.items()
    }
    path = commands["layered"][commands["layered"].index("--speculative-draft-model-path") + 1]
    assert {file.name for file in Path(path).iterdir()} == {"config.json", "model.safetensors"}
    assert "--speculative-draft-model-path" not in commands["stock"]
