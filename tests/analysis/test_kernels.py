"""Kernels in operators, from traces in the profiler's form."""

from lightllm_otel.tools.analysis.kernels import OUTSIDE, Kernel, kernels


def event(cat, name, ts, dur, tid=7):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": tid}


def test_a_kernel_belongs_to_the_operator_whose_range_it_began_in():
    trace = {"traceEvents": [
        event("gpu_user_annotation", "lightllm_otel: ffn 3", 0, 100), event("kernel", "gemm", 10, 40),
        event("kernel", "gemm", 60, 40),
        event("gpu_user_annotation", "lightllm_otel: attention 3", 100, 50), event("kernel", "flash", 100, 50),
        event("kernel", "stray", 200, 5), event("kernel", "other stream", 20, 5, tid=8),
        event("gpu_user_annotation", "somebody else's", 190, 50),
    ]}  # fmt: skip
    assert kernels(trace) == [
        Kernel("ffn", "gemm", 2, 80e-6), Kernel("attention", "flash", 1, 50e-6), Kernel(OUTSIDE, "stray", 1, 5e-6),
        Kernel(OUTSIDE, "other stream", 1, 5e-6),
    ]  # fmt: skip


def test_an_operator_inside_another_counts_as_the_outer_one():
    trace = {"traceEvents": [
        event("gpu_user_annotation", "lightllm_otel: lm_head", 0, 100),
        event("gpu_user_annotation", "lightllm_otel: ffn_norm", 0, 10),
        event("kernel", "norm", 5, 5),
    ]}  # fmt: skip
    assert [row.operator for row in kernels(trace)] == ["lm_head"]


def test_without_a_gpu_torchs_own_operations_stand_for_kernels_but_not_what_they_call():
    trace = {"traceEvents": [
        event("user_annotation", "lightllm_otel: ffn 0", 0, 100), event("cpu_op", "aten::linear", 10, 50),
        event("cpu_op", "aten::addmm", 20, 30),
    ]}  # fmt: skip
    assert kernels(trace) == [Kernel("ffn", "aten::linear", 1, 50e-6)]


def test_an_empty_trace_has_none():
    assert kernels({}) == []
