"""--moe-kernels: which FusedMoE layers of SGLang the fused experts serve, and that they compute them."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
from fp8_cases import random_fp8_layer
from fused_experts_cases import Shape, random_layer, relative_error, uniform_ids
from layered_sglang.config import StartRefused
from layered_sglang.moe import native_status
from layered_sglang.moe.reference import fused_experts_fp8_fp32, fused_experts_fp32
from plan_cases import with_invalid

moe_runner = pytest.importorskip("layered_sglang.hooks.moe_runner")

SHAPE = Shape(num_experts=6, top_k=3, hidden=72, inter=48)
FP8_SHAPE = Shape(num_experts=6, top_k=3, hidden=256, inter=384)
pytestmark = pytest.mark.skipif(not native_status().available, reason=native_status().reason)


@pytest.fixture
def server_args() -> types.SimpleNamespace:
    return types.SimpleNamespace(
        moe_a2a_backend="none",
        enable_lora=False,
        enable_torch_compile=False,
        enable_deterministic_inference=False,
    )


def make_layer(tokens: int = 9, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    """A FusedMoE with SGLang's classes and none of their set-up, which wants a server's arguments."""
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
    from sglang.srt.layers.moe.utils import MoeRunnerBackend
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

    weights = random_layer(SHAPE, uniform_ids(tokens, SHAPE), "cpu")
    layer = FusedMoE.__new__(FusedMoE)
    torch.nn.Module.__init__(layer)
    for name in ("w13", "w2"):
        parameter = torch.nn.Parameter(getattr(weights, name).to(dtype), requires_grad=False)
        layer.register_parameter(f"{name}_weight", parameter)
    layer.top_k, layer.with_bias, layer.num_experts = SHAPE.top_k, False, SHAPE.num_experts
    layer.moe_runner_config = MoeRunnerConfig(inplace=False)
    method = UnquantizedFusedMoEMethod.__new__(UnquantizedFusedMoEMethod)
    torch.nn.Module.__init__(method)
    method.runner = types.SimpleNamespace(runner_backend=MoeRunnerBackend.TRITON)
    layer.quant_method = method
    return layer


def make_fp8_layer(tokens: int = 9) -> torch.nn.Module:
    """The same of an FP8 checkpoint with scales of 128 x 128 blocks."""
    from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod

    weights = random_fp8_layer(FP8_SHAPE, uniform_ids(tokens, FP8_SHAPE), "cpu")
    layer = make_layer()
    for name in ("w13", "w2"):
        for ours, theirs in (
            (name, f"{name}_weight"),
            (f"{name}_scale_inv", f"{name}_weight_scale_inv"),
        ):
            parameter = torch.nn.Parameter(getattr(weights, ours), requires_grad=False)
            layer.register_parameter(theirs, parameter)
    layer.w13_input_scale = layer.w2_input_scale = None
    method = Fp8MoEMethod.__new__(Fp8MoEMethod)
    method.runner = layer.quant_method.runner
    method.weight_block_size = [128, 128]
    method.use_mxfp8 = method.is_fp4_expert = False
    del layer.quant_method  # a module, which this one is not
    layer.quant_method = method
    return layer


def dispatched(topk_ids: torch.Tensor, shape: Shape = SHAPE):
    """SGLang's dispatch output for these experts, with normal input and weights in [0, 1)."""
    from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    inputs = random_layer(shape, topk_ids, "cpu", seed=1)
    topk = StandardTopKOutput(inputs.topk_weights, topk_ids, torch.empty(0))
    return StandardDispatchOutput(inputs.x, None, topk)


def expected(layer: torch.nn.Module, output, scale: float = 1.0) -> torch.Tensor:
    topk = output.topk_output
    weights = layer.w13_weight, layer.w2_weight, topk.topk_weights, topk.topk_ids
    return scale * fused_experts_fp32(output.hidden_states, *weights)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def test_a_served_layer_computes_what_sglangs_own_code_does(server_args, monkeypatch) -> None:
    from sglang.srt.layers.moe import fused_moe_native

    # SGLang's class of it wants a server's arguments.
    monkeypatch.setattr(fused_moe_native, "SiluAndMul", lambda: silu_and_mul)
    layer = make_layer()
    output = dispatched(uniform_ids(40, SHAPE))
    theirs = fused_moe_native.moe_forward_native(
        layer, output.hidden_states, output.topk_output, layer.moe_runner_config
    )
    assert moe_runner.hand_over(layer, server_args, "layered") == "layered_sglang's fused experts"
    ours = layer.run_moe_core(output).hidden_states
    assert relative_error(ours, expected(layer, output)) < 0.005
    assert relative_error(ours, theirs.float()) < 0.02  # theirs rounds more often
    assert not torch.equal(ours, theirs)  # so it was not theirs again


@pytest.mark.parametrize(
    "topk_ids",
    [
        with_invalid(uniform_ids(9, SHAPE), [-1]),  # expert parallelism
        torch.full((4, 3), -1, dtype=torch.int32),
        torch.empty(0, 3, dtype=torch.int32),
        uniform_ids(9, SHAPE).long(),
    ],
    ids=["some -1", "all -1", "no tokens", "int64"],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_ids_scaling_and_in_place(server_args, topk_ids: torch.Tensor, inplace: bool) -> None:
    layer = make_layer()
    layer.moe_runner_config.routed_scaling_factor = 2.5
    layer.moe_runner_config.inplace = inplace
    moe_runner.hand_over(layer, server_args, "layered")
    output = dispatched(topk_ids)
    want = expected(layer, output, 2.5)
    before = output.hidden_states.clone()
    result = layer.run_moe_core(output).hidden_states
    assert relative_error(result, want) < 0.005
    assert (result is output.hidden_states) == inplace
    assert inplace or torch.equal(output.hidden_states, before)


def test_updated_weights_are_used(server_args) -> None:
    """SGLang copies new weights into the same parameters; nothing may be kept of the old ones."""
    layer = make_layer()
    moe_runner.hand_over(layer, server_args, "layered")
    output = dispatched(uniform_ids(5, SHAPE))
    before = layer.run_moe_core(output).hidden_states
    layer.w13_weight.data.mul_(-0.5)
    after = layer.run_moe_core(output).hidden_states
    assert relative_error(after, expected(layer, output)) < 0.005
    assert relative_error(after, before.float()) > 0.5


def test_updated_fp8_weights_are_used(server_args, monkeypatch) -> None:
    """Also after what SGLang does with loaded weights on a Hopper GPU."""
    from sglang.srt.layers.quantization import fp8

    monkeypatch.setattr(fp8, "_is_cpu", False)
    layer, new = make_fp8_layer(), make_fp8_layer()
    method = layer.quant_method
    method.block_quant, method.convert_mxfp8_to_block = True, False
    method.quant_config = types.SimpleNamespace(weight_block_size=[128, 128])
    method.is_deepgemm_moe_runner_backend_enabled = lambda: False
    moe_runner.hand_over(layer, server_args, "layered")
    output = dispatched(uniform_ids(20, FP8_SHAPE), FP8_SHAPE)
    before = layer.run_moe_core(output).hidden_states
    held = {name: weight.data_ptr() for name, weight in layer.named_parameters()}
    for name, weight in layer.named_parameters():
        changed = dict(new.named_parameters())[name]
        weight.data.copy_(changed.float().mul(-0.5) if "scale" in name else changed)
    method.process_weights_after_loading(layer)
    after = layer.run_moe_core(output).hidden_states
    weights = (
        *(layer.w13_weight, layer.w13_weight_scale_inv),
        *(layer.w2_weight, layer.w2_weight_scale_inv),
    )
    topk = output.topk_output
    want = fused_experts_fp8_fp32(output.hidden_states, *weights, topk.topk_weights, topk.topk_ids)
    assert relative_error(after, want) < 0.005
    assert relative_error(after, before.float()) > 0.5
    # CUDA graphs read them where they are.
    assert held == {name: weight.data_ptr() for name, weight in layer.named_parameters()}


@pytest.mark.parametrize("inplace", [False, True])
def test_an_fp8_layer(server_args, inplace: bool) -> None:
    layer = make_fp8_layer()
    layer.moe_runner_config.routed_scaling_factor = 2.5
    layer.moe_runner_config.inplace = inplace
    assert moe_runner.hand_over(layer, server_args, "layered") == "layered_sglang's fused experts"
    output = dispatched(with_invalid(uniform_ids(20, FP8_SHAPE), [-1]), FP8_SHAPE)
    topk = output.topk_output
    weights = (
        *(layer.w13_weight, layer.w13_weight_scale_inv),
        *(layer.w2_weight, layer.w2_weight_scale_inv),
    )
    want = 2.5 * fused_experts_fp8_fp32(
        output.hidden_states, *weights, topk.topk_weights, topk.topk_ids
    )
    result = layer.run_moe_core(output).hidden_states
    assert relative_error(result, want) < 0.005
    assert (result is output.hidden_states) == inplace


FP8_OBSTACLES: dict[str, Callable[[torch.nn.Module], object]] = {
    "their scales are not of blocks of 128 x 128 (Fp8MoEMethod)": (
        lambda layer: setattr(layer.quant_method, "weight_block_size", None)
    ),
    "they are in MXFP8 or FP4 (Fp8MoEMethod)": (
        lambda layer: setattr(layer.quant_method, "use_mxfp8", True)
    ),
    "their activations have fixed scales (Fp8MoEMethod)": (
        lambda layer: setattr(layer, "w13_input_scale", torch.ones(6))
    ),
    "--moe-runner-backend is cutlass": lambda layer: delattr(layer.quant_method, "runner"),
    "a rank's intermediate size 320 is not a multiple of 128": (
        lambda layer: setattr(
            layer.w2_weight, "data", layer.w2_weight.data[:, :, :320].contiguous()
        )
    ),
    "they have biases": lambda layer: setattr(layer, "with_bias", True),
}


@pytest.mark.parametrize("reason", FP8_OBSTACLES)
def test_what_cannot_be_served_in_fp8_is_named(server_args, reason: str) -> None:
    layer = make_fp8_layer()
    FP8_OBSTACLES[reason](layer)
    server_args.moe_runner_backend = "cutlass"
    with pytest.raises(StartRefused) as refused:
        moe_runner.hand_over(layer, server_args, "layered")
    assert f"cannot compute the experts: {reason};" in str(refused.value)
    assert reason in moe_runner.hand_over(layer, server_args, "auto")


def quantised(layer: torch.nn.Module) -> None:
    class W4AFp8MoEMethod(torch.nn.Module):
        pass

    layer.quant_method = W4AFp8MoEMethod()


def deep_gemm(layer: torch.nn.Module) -> None:
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    layer.quant_method.runner.runner_backend = MoeRunnerBackend.DEEP_GEMM


def configured(**values: object) -> Callable[[torch.nn.Module], None]:
    return lambda layer: [setattr(layer.moe_runner_config, *item) for item in values.items()]


def float32(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.data = parameter.data.float()


def narrow(layer: torch.nn.Module) -> None:
    layer.w2_weight.data = layer.w2_weight.data[:, :, :44].contiguous()


LAYER_OBSTACLES: dict[str, Callable[[torch.nn.Module], object]] = {
    "they are quantised or wrapped (W4AFp8MoEMethod)": quantised,
    "--moe-runner-backend chose deep_gemm": deep_gemm,
    "their activation is gelu": configured(activation="gelu"),
    "they have no gate": configured(is_gated=False),
    "they have biases": lambda layer: setattr(layer, "with_bias", True),
    "their SwiGLU is clamped or scaled": configured(swiglu_limit=7.0),
    "router weights are applied to their input": configured(apply_router_weight_on_input=True),
    "their results are not combined": configured(no_combine=True),
    "they are float32, and the kernels take bfloat16": float32,
    "a rank's intermediate size 44 is not a multiple of 8": narrow,
    "33 experts a token are more than 32": lambda layer: setattr(layer, "top_k", 33),
}
SERVER_OBSTACLES = {
    "--moe-a2a-backend is deepep": {"moe_a2a_backend": "deepep"},
    "--enable-lora": {"enable_lora": True},
    "--enable-torch-compile": {"enable_torch_compile": True},
    "--enable-deterministic-inference": {"enable_deterministic_inference": True},
}


@pytest.mark.parametrize("reason", [*LAYER_OBSTACLES, *SERVER_OBSTACLES])
def test_what_cannot_be_served_is_named(server_args, reason: str) -> None:
    layer = make_layer()
    LAYER_OBSTACLES.get(reason, lambda layer: None)(layer)
    vars(server_args).update(SERVER_OBSTACLES.get(reason, {}))
    with pytest.raises(StartRefused) as refused:
        moe_runner.hand_over(layer, server_args, "layered")
    line = str(refused.value)
    assert line.startswith(f"--moe-kernels layered cannot compute the experts: {reason}")
    assert "\n" not in line and line.endswith("use --moe-kernels auto or sglang")
    text = moe_runner.hand_over(layer, server_args, "auto")
    assert text.startswith("SGLang's PyTorch code (") and reason in text
    assert getattr(layer.quant_method, "apply", None) is not moe_runner.run_layered


def test_a_device_without_kernels(server_args, monkeypatch: pytest.MonkeyPatch) -> None:
    from layered_sglang.moe import selection

    monkeypatch.setattr(selection, "has_kernels_for", lambda device: False)
    with pytest.raises(StartRefused, match="there are no kernels for cpu"):
        moe_runner.hand_over(make_layer(), server_args, "layered")
    monkeypatch.setattr(
        selection,
        "native_status",
        lambda: types.SimpleNamespace(available=False, reason="not built"),
    )
    with pytest.raises(StartRefused, match=r"there are no compiled kernels \(not built\)"):
        moe_runner.hand_over(make_layer(), server_args, "layered")


def test_sglang_leaves_every_layer_alone(server_args) -> None:
    layer = make_layer()
    original = layer.quant_method.apply
    text = moe_runner.hand_over(layer, server_args, "sglang")
    assert text == "SGLang's PyTorch code (--moe-kernels sglang)"
    assert layer.quant_method.apply == original


def test_auto_takes_what_was_measured_as_faster(server_args, monkeypatch) -> None:
    monkeypatch.setattr(moe_runner, "why_not_faster", lambda layer: None)
    one, other = make_layer(), make_layer()
    other.with_bias = True
    text = moe_runner.hand_over(torch.nn.ModuleList([one, other]), server_args, "auto")
    assert text == (
        "layered_sglang's fused experts in 1 layers, SGLang's PyTorch code in 1 (they have biases)"
    )
    assert one.quant_method.apply is moe_runner.run_layered
    with pytest.raises(StartRefused, match="they have biases"):
        moe_runner.hand_over(torch.nn.ModuleList([one, other]), server_args, "layered")


def test_auto_leaves_sglang_the_numbers_of_tokens_at_which_it_is_faster(
    server_args, monkeypatch
) -> None:
    monkeypatch.setattr(moe_runner, "why_not_faster", lambda layer: None)
    monkeypatch.setattr(moe_runner, "kept_by_sglang", lambda layer: range(3, 8))
    monkeypatch.setattr(moe_runner, "run_layered", lambda layer, dispatched: "ours")
    layer = make_layer()
    layer.quant_method.apply = lambda layer, dispatched: "theirs"
    text = moe_runner.hand_over(layer, server_args, "auto")
    assert text == "layered_sglang's fused experts; for 3 to 7 tokens SGLang's, faster there"

    def computed_by(tokens: int) -> str:
        hidden = types.SimpleNamespace(hidden_states=torch.empty(tokens, 2))
        return layer.quant_method.apply(layer, hidden)

    by = [computed_by(tokens) for tokens in (2, 3, 7, 8, 4096)]
    assert by == ["ours", "theirs", "theirs", "ours", "ours"]
    moe_runner.hand_over(layer, server_args, "layered")
    assert layer.quant_method.apply is moe_runner.run_layered


@pytest.mark.parametrize("gpu", ["NVIDIA H200", "NVIDIA H100 80GB HBM3"])
def test_auto_wants_a_measurement(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)

    def layer(inter: int, dtype: torch.dtype = torch.bfloat16) -> types.SimpleNamespace:
        w13 = types.SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)
        w2 = torch.empty(128, 2048, inter, device="meta")
        return types.SimpleNamespace(w13_weight=w13, w2_weight=w2, top_k=8, quant_method=None)

    assert moe_runner.why_not_faster(layer(768)) is None
    assert moe_runner.why_not_faster(layer(760)) == (
        "not measured as faster for (128, 8, 2048, 760) (experts, top k, hidden, intermediate) "
        f"on {gpu}"
    )
    kept = [moe_runner.kept_by_sglang(layer(768 // tp)) for tp in (1, 2, 4, 8)]
    measured = [range(3, 8), range(0), range(2, 512), range(0)]
    assert kept == (measured if gpu == "NVIDIA H200" else [range(0)] * 4)
    assert moe_runner.why_not_faster(layer(768, torch.float8_e4m3fn)) == (
        "not measured as faster in fp8 for (128, 8, 2048, 768) (experts, top k, hidden, "
        f"intermediate) on {gpu}"
    )
    assert moe_runner.why_not_faster(make_layer()) == "the CPU code is a reference"


def test_a_dense_model(server_args) -> None:
    dense = torch.nn.Linear(2, 2)
    assert moe_runner.hand_over(dense, server_args, "auto") == "none: a dense model"
    with pytest.raises(StartRefused, match="experts: the model has none"):
        moe_runner.hand_over(dense, server_args, "layered")


@pytest.mark.parametrize("draft", [True, False])
def test_a_dense_draft_model_does_not_end_the_start(draft, server_args, monkeypatch):
    config = types.SimpleNamespace(moe_kernels="layered")
    monkeypatch.setattr(moe_runner, "layered_config", lambda args: config)
    runner = types.SimpleNamespace(
        model=torch.nn.Linear(2, 2),
        server_args=server_args,
        is_draft_worker=draft,
        ps=types.SimpleNamespace(tp_rank=1),
    )
    if draft:
        moe_runner.choose_moe_kernels(None, runner)
        assert runner.experts_text == "none: a dense model"
    else:
        with pytest.raises(StartRefused, match="the model has none"):
            moe_runner.choose_moe_kernels(None, runner)
