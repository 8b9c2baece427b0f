"""A process of a server made of fakes, for test_request_path.py.

    python path_process.py http  REQUESTS     asks itself, each in a trace of its own; the model process is its child
    python path_process.py model              a line of numbers of requests in, a line for each step out

The model process samples every step and starts an exporter, as a server's does. The HTTP process prints, as JSON, which requests
ran in which decode steps, as the model process saw it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import types

import fake_host
import hooks
from fake_host import HttpRequest, ModelInput, SamplingParams

from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.settings import Settings
from lightllm_otel.worker import session as session_module
from lightllm_otel.worker.gpu.clock import HostClock
from lightllm_otel.worker.session import ServerSession

CHUNKS = (20, 10)  # of every prompt
NEW_TOKENS = 4


def session_of_this_process():
    return ServerSession(Settings.from_env(os.environ), Guard(strict=True), PatchSet(), live=PatchSet())


class Req:
    """A request in the model process, as NEW has it."""

    def __init__(self, number):
        self.req_id = number
        self.shm_req = types.SimpleNamespace(group_req_id=number)
        self.cur_kv_len, self.cur_output_len, self._next = 0, 0, 0

    def get_chuncked_input_token_len(self):
        return self._next


def model():
    now = [50.0]
    session_module.choose_clock = lambda: HostClock(lambda: now[0])
    session_module.operators.install_all_collectives = lambda *args: None
    host = fake_host.make(now)
    session = session_of_this_process()
    hooks.hook(
        session, basemodel__basemodel=host.basemodel, generic_post_process=host.post_process, model_rpc=host.model_rpc
    )
    rpc = host.model_rpc.ModelRpcServer(host.basemodel.TpPartBaseModel())

    def step(requests, is_prefill):
        number = session.forwards.completed
        rpc.waiting.append((ModelInput(len(requests), 64, is_prefill, tokens=600), requests))
        rpc.decode()
        return number

    known = {}
    for line in sys.stdin:
        requests = []
        for number in json.loads(line):
            request = known.get(number)
            if request is None:
                request = known[number] = Req(number)
                for tokens in CHUNKS:
                    request._next = request.cur_kv_len + tokens
                    step([request], True)
                    request.cur_kv_len += tokens
                request.cur_output_len = 1
            requests.append(request)
        print(json.dumps(step(requests, False)), flush=True)
        rpc.decode()  # nothing to do: the idle tick
    rpc.decode()


def http(count):
    child = subprocess.Popen(
        [sys.executable, __file__, "model"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    steps = {}
    running, turn = [], asyncio.Condition()

    async def batch():
        """One step for all requests that run, as a router does."""
        while len(running) < count:
            await asyncio.sleep(0.01)
        for _ in range(NEW_TOKENS):
            child.stdin.write(json.dumps(running) + "\n")
            child.stdin.flush()
            steps[json.loads(await asyncio.to_thread(child.stdout.readline))] = list(running)
            async with turn:
                turn.notify_all()
            await asyncio.sleep(0.05)

    class Manager:
        """NEW's, in its outer form."""

        def __init__(self):
            self.args, self._next = fake_host.HTTP_ARGS, 0

        async def _encode(self, prompt, multimodal_params, sampling_params):
            return list(prompt)

        async def generate(self, prompt, sampling_params, multimodal_params, request, is_health_req=False):
            self._next += 8
            number = sampling_params.group_request_id = self._next
            prompt_ids = await self._encode(prompt, multimodal_params, sampling_params)
            async with turn:
                running.append(number)
                for left in reversed(range(NEW_TOKENS)):
                    await turn.wait()
                    status = fake_host.FinishStatus(None if left else "length")
                    yield number, "an answer", {"prompt_tokens": len(prompt_ids)}, status

    module = types.ModuleType("fake")
    module.HttpServerManager = Manager
    hooks.hook(session_of_this_process(), httpserver__manager=module)
    manager = Manager()

    async def ask(number):
        request = HttpRequest("/generate_stream", traceparent=f"00-{number:032x}-{number:016x}-01")
        async for _ in manager.generate("x" * sum(CHUNKS), SamplingParams(), None, request):
            pass

    async def everything():
        await asyncio.gather(batch(), *(ask(number) for number in range(1, count + 1)))
        # A step that nobody asked for: the last one is read when another has been launched.
        child.stdin.write(json.dumps(running[:1]) + "\n")
        child.stdin.flush()
        await asyncio.to_thread(child.stdout.readline)

    asyncio.run(everything())
    print(json.dumps(steps), flush=True)
    sys.stdin.readline()  # until the test has seen enough
    child.stdin.close()
    child.wait(20)


if __name__ == "__main__":
    http(int(sys.argv[2])) if sys.argv[1] == "http" else model()
