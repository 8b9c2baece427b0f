"""The static model of `lightllm-otel bench --static`, under the name that the benchmarks know."""

from lightllm_otel.tools.benchmark.graph_sizes import GraphSizes, graph_sizes_for
from lightllm_otel.tools.benchmark.static_v1 import FIRST_ORDINARY_TOKEN, MAX_LENGTH, SPARE, StaticModel

__all__ = ["FIRST_ORDINARY_TOKEN", "MAX_LENGTH", "SPARE", "GraphSizes", "StaticModel", "graph_sizes_for"]
