"""LightLLM's own list of requests in every step, for tracing.py: STEP_LISTS names the file that gets a line for each.

A line is the numbers of the requests that NEW's ``sample`` was given, in the order of the calls. On PYTHONPATH.
"""

import functools
import json
import os

MODULE = "lightllm.server.router.model_infer.mode_backend.generic_post_process"


def listed(host, path):
    @functools.wraps(host)
    def sample(logits, reqs, *args, **kwargs):
        with open(path, "a") as file:  # noqa: PTH123 - as little as can be in every Python process
            file.write(json.dumps([request.shm_req.group_req_id for request in reqs]) + "\n")
        return host(logits, reqs, *args, **kwargs)

    return sample


def install(module):
    module.sample = listed(module.sample, os.environ["STEP_LISTS"])


if os.environ.get("STEP_LISTS"):
    import wrapt

    wrapt.register_post_import_hook(install, MODULE)
