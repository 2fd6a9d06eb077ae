"""--moe-kernels with MXFP4 experts, as SGLang's Mxfp4MoEMethod holds them for triton_kernels."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
from fused_experts_cases import Shape, relative_error, uniform_ids
from layered_sglang.config import StartRefused
from layered_sglang.moe import native_status
from layered_sglang.moe.mxfp4 import unpack
from layered_sglang.moe.reference_mxfp4 import fused_experts_mxfp4_fp32
from mxfp4_cases import Mxfp4Layer, random_mxfp4_layer
from plan_cases import with_invalid
from test_runner import dispatched, server_args  # noqa: F401  a fixture

moe_runner = pytest.importorskip("layered_sglang.hooks.moe_runner")
pytest.importorskip("triton_kernels")

SHAPE = Shape(num_experts=6, top_k=3, hidden=96, inter=128)
SERVED = "layered_sglang's fused experts; weights cannot be updated while serving"
pytestmark = pytest.mark.skipif(not native_status().available, reason=native_status().reason)


def make_block(seed: int = 0) -> tuple[torch.nn.Module, Mxfp4Layer]:
    """A model's block of TopK and FusedMoE after loading, and the same weights in our layout.

    With SGLang's classes and none of their set-up, which wants a GPU and a server's arguments.
    """
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
    from sglang.srt.layers.moe.topk import TopK, TopKConfig
    from sglang.srt.layers.moe.utils import MoeRunnerBackend
    from sglang.srt.layers.quantization.mxfp4 import Mxfp4MoEMethod
    from triton_kernels.tensor import FP4, convert_layout, wrap_torch_tensor
    from triton_kernels.tensor_details.layout import HopperMXValueLayout

    ours = random_mxfp4_layer(SHAPE, uniform_ids(9, SHAPE), "cpu", seed)
    layer = FusedMoE.__new__(FusedMoE)
    torch.nn.Module.__init__(layer)
    method = Mxfp4MoEMethod.__new__(Mxfp4MoEMethod)
    method.runner = types.SimpleNamespace(runner_backend=MoeRunnerBackend.TRITON_KERNELS)
    sizes = {"w13": (2 * SHAPE.inter, SHAPE.hidden), "w2": (SHAPE.hidden, SHAPE.inter)}
    for name, size in sizes.items():
        values, scales = unpack(getattr(ours, name), *size, gate_up=name == "w13")
        tensor = wrap_torch_tensor(values.transpose(-2, -1), dtype=FP4)
        swizzled = convert_layout(tensor, HopperMXValueLayout, mx_axis=1)
        setattr(method, f"{name}_weight_triton_tensor", swizzled)
        setattr(method, f"{name}_precision_config", object())
        bias = getattr(ours, f"{name}_bias").clone()
        for suffix, part in (("scale", scales), ("bias", bias)):
            parameter = torch.nn.Parameter(part, requires_grad=False)
            layer.register_parameter(f"{name}_weight_{suffix}", parameter)
    layer.top_k, layer.with_bias, layer.num_experts = SHAPE.top_k, True, SHAPE.num_experts
    layer.moe_runner_config = MoeRunnerConfig(gemm1_alpha=1.702, gemm1_clamp_limit=7.0)
    layer.quant_method = method

    block = torch.nn.Module()
    block.topk = TopK.__new__(TopK)
    torch.nn.Module.__init__(block.topk)
    block.topk.topk_config = TopKConfig(top_k=SHAPE.top_k)
    block.experts = layer
    return block, ours


def test_a_served_layer(server_args) -> None:  # noqa: F811
    from sglang.srt.layers.moe.topk import TopKOutputFormat

    block, ours = make_block()
    block.experts.moe_runner_config.routed_scaling_factor = 2.5
    text = moe_runner.hand_over(block, server_args, "layered")
    assert text == SERVED
    output = dispatched(with_invalid(uniform_ids(20, SHAPE), [-1]), SHAPE)
    before = output.hidden_states.clone()
    result = block.experts.run_moe_core(output).hidden_states
    topk = output.topk_output
    want = 2.5 * fused_experts_mxfp4_fp32(before, *ours[1:5], topk.topk_weights, topk.topk_ids)
    assert relative_error(result, want) < 0.005
    assert torch.equal(output.hidden_states, before)
    # What the router gave to triton_kernels, it now gives as ids.
    assert block.topk.topk_config.output_format is TopKOutputFormat.STANDARD


def test_no_weights_are_held_twice(server_args) -> None:  # noqa: F811
    block, ours = make_block()
    moe_runner.hand_over(block, server_args, "layered")
    layer = block.experts
    assert torch.equal(layer.w13_packed, ours.w13) and torch.equal(layer.w2_packed, ours.w2)
    held = {name for name, _ in layer.named_parameters()}
    assert held == {"w13_packed", "w13_weight_bias", "w2_packed", "w2_weight_bias"}
    assert not any("triton" in name or "precision" in name for name in vars(layer.quant_method))


def test_layers_are_taken_over_each_with_its_router(server_args) -> None:  # noqa: F811
    blocks, ours = zip(*(make_block(seed) for seed in range(2)), strict=True)
    moe_runner.hand_over(torch.nn.ModuleList(blocks), server_args, "layered")
    for block, weights in zip(blocks, ours, strict=True):
        output = dispatched(uniform_ids(5, SHAPE), SHAPE)
        topk = output.topk_output
        routing = topk.topk_weights, topk.topk_ids
        want = fused_experts_mxfp4_fp32(output.hidden_states, *weights[1:5], *routing)
        assert relative_error(block.experts.run_moe_core(output).hidden_states, want) < 0.005


def updater(target: torch.nn.Module, draft: torch.nn.Module | None = None):
    """Our scheduler's weight updater over SGLang's, whose workers count what reaches them."""
    from layered_sglang.hooks.weight_updates import CheckedWeightUpdater
    from sglang.srt.managers.scheduler_components.weight_updater import (
        SchedulerWeightUpdaterManager,
    )

    seen: list[str] = []

    def worker(name: str, **attributes: object) -> types.SimpleNamespace:
        def take(recv_req: object) -> tuple[bool, str]:
            seen.append(f"{name} {recv_req}")
            return True, "taken"

        calls = {f"update_weights_from_{source}": take for source in UPDATES}
        return types.SimpleNamespace(**attributes, **calls)

    stock = SchedulerWeightUpdaterManager(
        tp_worker=worker("target", model_runner=types.SimpleNamespace(model=target)),
        draft_worker=draft
        and worker("draft", draft_model_runner=types.SimpleNamespace(model=draft)),
        tp_cpu_group=None,
        memory_saver_adapter=None,
        flush_cache=lambda **_: True,
        is_fully_idle=lambda: True,
        scheduler=types.SimpleNamespace(weights_will_change=lambda: seen.append("change")),
    )
    return CheckedWeightUpdater.extend(stock), seen


class Update(types.SimpleNamespace):
    """A request for new weights, as far as the scheduler looks into it."""

    def __init__(self) -> None:
        super().__init__(flush_cache=False, disable_draft_model=False)

    def __str__(self) -> str:
        return "update"


UPDATES = ("disk", "distributed", "tensor", "ipc")


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[bool]], None]:
    """``ranks(others)``: whether the other ranks have experts in our layout."""

    def of(others: list[bool]) -> None:
        def all_gather_object(found: list, ours: bool, group: object) -> None:
            found[:] = [ours, *others]

        distributed = torch.distributed
        monkeypatch.setattr(distributed, "get_world_size", lambda group: 1 + len(others))
        monkeypatch.setattr(distributed, "all_gather_object", all_gather_object)
        monkeypatch.setattr(distributed, "barrier", lambda group: None)

    return of


@pytest.mark.parametrize("source", UPDATES)
@pytest.mark.parametrize("has_it", ["target", "draft", "another rank"])
def test_new_weights_are_refused(server_args, ranks, source: str, has_it: str) -> None:  # noqa: F811
    """SGLang's loader finds no parameters to copy them to."""
    block, _ = make_block()
    moe_runner.hand_over(block, server_args, "layered")
    dense = torch.nn.Linear(2, 2)
    ranks([has_it == "another rank"])
    models = (block, dense) if has_it == "target" else (dense, block)
    checked, seen = updater(*(models if has_it != "another rank" else (dense, dense)))
    before = {name: weight.clone() for name, weight in block.named_parameters()}
    answer = getattr(checked, f"update_weights_from_{source}")(Update())
    assert not answer.success
    assert answer.message.startswith("the weights stay as they are: the MXFP4 experts are in")
    assert "\n" not in answer.message and seen == []
    assert all(torch.equal(weight, before[name]) for name, weight in block.named_parameters())


@pytest.mark.parametrize("source", UPDATES)
@pytest.mark.parametrize("others", [[], [False]], ids=["one rank", "two ranks"])
def test_other_weights_are_updated(source: str, others: list[bool], ranks) -> None:
    """The scheduler knows before they change."""
    ranks(others)
    checked, seen = updater(make_block()[0])  # not taken over
    answer = getattr(checked, f"update_weights_from_{source}")(Update())
    assert answer.success and answer.message == "taken"
    assert seen == ["change", "target update"]


def configured(**values: object) -> Callable[[torch.nn.Module], None]:
    return lambda block: [
        setattr(block.experts.moe_runner_config, *item) for item in values.items()
    ]


def marlin(block: torch.nn.Module) -> None:
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    block.experts.quant_method.runner.runner_backend = MoeRunnerBackend.MARLIN


OBSTACLES: dict[str, Callable[[torch.nn.Module], object]] = {
    "they are not in triton_kernels' layout (Mxfp4MoEMethod)": (
        lambda block: delattr(block.experts.quant_method, "w13_weight_triton_tensor")
    ),
    "their SwiGLU is not gpt-oss's (Mxfp4MoEMethod)": configured(gemm1_alpha=None),
    "their gate and up rows do not alternate (Mxfp4MoEMethod)": configured(
        gate_up_interleaved=False
    ),
    "their router is not found beside them (Mxfp4MoEMethod)": (
        lambda block: setattr(block, "topk", torch.nn.Identity())
    ),
    "a group's scale is above 2 (Mxfp4MoEMethod)": (
        lambda block: block.experts.w2_weight_scale.data[1, 2].fill_(129)
    ),
    "--moe-runner-backend chose marlin": marlin,
    "their activation is gelu": configured(activation="gelu"),
    "router weights are applied to their input": configured(apply_router_weight_on_input=True),
    "33 experts a token are more than 32": lambda block: setattr(block.experts, "top_k", 33),
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_what_cannot_be_served_is_named(server_args, reason: str) -> None:  # noqa: F811
    block, _ = make_block()
    OBSTACLES[reason](block)
    with pytest.raises(StartRefused) as refused:
        moe_runner.hand_over(block, server_args, "layered")
    assert f"cannot compute the experts: {reason};" in str(refused.value)
    assert reason in moe_runner.hand_over(block, server_args, "auto")
    assert block.topk is None or getattr(block.experts, "w13_packed", None) is None


@pytest.mark.parametrize("choice", ["auto", "sglang"])
def test_nothing_is_touched_where_it_is_not_chosen(server_args, choice: str) -> None:  # noqa: F811
    """auto: experts of these sizes have not been measured as faster."""
    block, _ = make_block()
    before = set(vars(block.experts.quant_method))
    text = moe_runner.hand_over(block, server_args, choice)
    assert text.startswith("SGLang's")
    assert set(vars(block.experts.quant_method)) == before
    assert block.topk.topk_config.output_format is None


def test_auto_names_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    layer = make_block()[0].experts
    device = torch.device("cuda", 0)
    monkeypatch.setattr(moe_runner, "dtype_and_device_of", lambda layer: (torch.uint8, device))
    assert moe_runner.why_not_faster(layer) == (
        "not measured as faster in MXFP4 for (6, 3, 96, 128) (experts, top k, hidden, intermediate) "
        "on NVIDIA H200"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 40, 700])
def test_on_a_gpu_a_served_layer_computes_what_sglangs_kernels_do(server_args, tokens: int) -> None:  # noqa: F811
    """From a checkpoint's tensors, through SGLang's own processing of them after loading."""
    from sglang.srt.layers.moe.fused_moe_triton.triton_kernels_moe import (
        triton_kernel_fused_experts_with_bias,
    )
    from sglang.srt.layers.moe.topk import routing

    shape = Shape(num_experts=16, top_k=4, hidden=512, inter=320)
    block, _ = make_block()
    layer, method = block.experts, block.experts.quant_method
    ours = random_mxfp4_layer(shape, uniform_ids(tokens, shape), "cuda")
    sizes = {"w13": (2 * shape.inter, shape.hidden), "w2": (shape.hidden, shape.inter)}
    for name, size in sizes.items():
        parts = unpack(getattr(ours, name), *size, gate_up=name == "w13")
        bias = getattr(ours, f"{name}_bias").bfloat16()
        for suffix, part in zip(
            ("weight", "weight_scale", "weight_bias"), (*parts, bias), strict=True
        ):
            parameter = torch.nn.Parameter(part, requires_grad=False)
            layer.register_parameter(f"{name}_{suffix}", parameter)
    layer.top_k, layer.num_experts = shape.top_k, shape.num_experts
    method.use_marlin = method.use_deep_gemm = method.use_flashinfer = False
    method._fi_kernel, method.use_triton_kernels = None, True
    method.process_weights_after_loading(layer)

    logits = torch.randn(tokens, shape.num_experts, device="cuda")
    theirs = triton_kernel_fused_experts_with_bias(
        ours.x,
        *(method.w13_weight_triton_tensor, method.w13_precision_config, layer.w13_weight_bias),
        *(method.w2_weight_triton_tensor, method.w2_precision_config, layer.w2_weight_bias),
        *routing(logits, shape.top_k),
        gemm1_alpha=1.702,
        gemm1_clamp_limit=7.0,
    )
    assert moe_runner.hand_over(block, server_args, "layered") == SERVED
    chosen = logits.topk(shape.top_k)
    output = types.SimpleNamespace(
        hidden_states=ours.x,
        topk_output=types.SimpleNamespace(
            topk_weights=chosen.values.softmax(1), topk_ids=chosen.indices
        ),
    )
    result = method.apply(layer, output).hidden_states
    assert relative_error(result, theirs.float()) < 0.01
    assert not torch.equal(result, theirs)  # so it was not theirs again
