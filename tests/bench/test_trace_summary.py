"""benchmarks/serving/trace_summary.py, on a small trace made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "serving"))
from trace_summary import covered, family, gaps, print_summary, read_steps, summarise, trimmed


def span(name: str, ts: float, dur: float) -> dict:
    return {"ph": "X", "cat": "user_annotation", "name": name, "ts": ts, "dur": dur}


def work(
    launch: str, at: float, correlation: int, *kernels: tuple[str, float, float]
) -> list[dict]:
    """A launch by the host, and what it makes the GPU do: (name, ts, dur)."""
    args = {"correlation": correlation}
    host = {"ph": "X", "cat": "cuda_runtime", "name": launch, "ts": at, "dur": 2, "args": args}
    return [host] + [
        {"ph": "X", "cat": "kernel", "name": name, "ts": ts, "dur": dur, "args": args}
        for name, ts, dur in kernels
    ]


TRACE = [
    {"ph": "M", "name": "process_name", "args": {}},
    {"ph": "X", "cat": "cpu_op", "name": "aten::add", "ts": 5, "dur": 1},
    *work("cudaLaunchKernel", 1, 1, ("rmsnorm", 2, 3)),  # before the first step: nobody's
    span("step[DECODE bs=8]", 10, 20),
    *work("cudaGraphLaunch", 12, 2, ("fused_moe_kernel", 100, 50), ("nvjet_tst_128", 150, 30)),
    *work("cudaLaunchKernel", 35, 3, ("argmax_kernel", 190, 10)),  # after the forward, before the next
    span("step[DECODE bs=8]", 40, 100),
    span("layer_group[3, 6) tokens=512", 41, 98),
    *work("cudaGraphLaunch", 42, 4, ("grouped_gemm_bf16<true, 1>", 200, 300)),
    *work("cudaGraphLaunch", 43, 5, ("flash::FlashAttnFwdSm90", 400, 200)),  # beside the GEMM
    *work("cudaLaunchKernelExC", 44, 6, ("unheard_of", 640, 60)),
    *work("cudaMemcpyAsync", 45, 7, ("Memcpy DtoD", 700, 10)),  # a copy is no launch of a kernel
    span("step[EXTEND bs=1 toks=900]", 200, 50),
    *work("cudaLaunchKernel", 210, 8, ("vectorized_elementwise_kernel", 710, 10)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("void layered_sglang::grouped_gemm::grouped_gemm_bf16<true, 1>(...)", "experts"),
        ("layered_sglang::expert_plan_place<2>", "experts"),
        ("fused_moe_kernel", "experts"),
        ("cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90", "attention"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "dense GEMM"),
        ("topkGatingSoftmax", "router"),
        ("fused_qknorm_rope", "norm, rope"),
        ("ncclDevKernel_AllReduce_Sum_bf16", "communication"),
        ("Memset (Device)", "copies"),
        ("void at::native::CatArrayBatchedCopy<...>", "copies"),
        ("strange", "other"),
    ],
)
def test_families(name: str, expected: str) -> None:
    assert family(name) == expected


def test_intervals() -> None:
    spans = [(0.0, 10.0), (5.0, 7.0), (20.0, 30.0), (29.0, 35.0)]
    assert covered(spans) == 25.0
    assert gaps(spans) == [10.0]
    assert covered([]) == 0.0


def test_kernels_belong_to_the_step_that_launched_them() -> None:
    steps, by_name = read_steps(TRACE)
    assert [step.kind for step in steps] == ["decode", "merged"]  # the last may be cut off
    decode, merged = steps
    assert (decode.launches, decode.graphs) == (2, 1)
    assert decode.family_us == {"experts": 50, "dense GEMM": 30, "sampling": 10}
    assert (merged.launches, merged.graphs) == (3, 2)
    assert merged.family_us == {"experts": 300, "attention": 200, "other": 60, "copies": 10}
    assert by_name["rmsnorm"] == 3


def test_summary(capsys) -> None:
    summary = summarise(TRACE)
    # From 100 to 710; idle from 180 to 190 and from 600 to 640.
    assert summary["window_ms"] == 0.61
    assert summary["gpu_busy"] == pytest.approx(560 / 610)
    assert (summary["gaps"], summary["longest_gap_ms"]) == (2, 0.04)
    decode = summary["kinds"]["decode"]
    assert (decode["period_us"], decode["gpu_us"], decode["host_us"]) == (100, 90, 20)
    assert summary["kinds"]["merged"]["gpu_us"] == 470  # what runs side by side counts once
    assert summary["unsorted"] == ["unheard_of"]
    print_summary("layered", summary)
    text = capsys.readouterr().out
    assert "GPU busy 91.8%; 2 gaps of 5 us or more" in text and "merged" in text


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fewer than two of SGLang's step\[...\] spans"):
        summarise([span("step[DECODE bs=1]", 0, 1)])


def test_trimmed_keeps_what_the_summary_needs() -> None:
    trace = trimmed({"schemaVersion": 1, "traceEvents": TRACE})
    assert trace["schemaVersion"] == 1
    assert len(trace["traceEvents"]) == len(TRACE) - 1
    assert summarise(trace["traceEvents"]) == summarise(TRACE)
