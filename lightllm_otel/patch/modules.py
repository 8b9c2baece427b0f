"""Which module of LightLLM is patched by what when it is imported. Imports nothing: it is read at every Python start."""

_MODEL = "lightllm.server.router.model_infer"
_BACKEND = f"{_MODEL}.mode_backend"

SEAMS = {
    "lightllm.common.basemodel.basemodel": "patch_model",
    "lightllm.common.basemodel.cuda_graph": "patch_graph",
    "lightllm.distributed.communication_op": "patch_groups",
    f"{_BACKEND}.generic_post_process": "patch_sample",
    f"{_BACKEND}.continues_batch.post_process": "patch_sample",
    f"{_BACKEND}.beamsearch.post_process": "patch_sample",
    f"{_BACKEND}.diverse_backend.post_process": "patch_sample",
    f"{_BACKEND}.base_backend": "patch_backend",
    f"{_MODEL}.model_rpc": "patch_rpc",
    "lightllm.server.health_monitor.manager": "patch_health",
    "lightllm.server.httpserver.manager": "patch_http",
}
"""Module → function of ``patch.seams``, called with the module and the process's session."""
