"""One rank of a group of real processes, for test_processes.py: a fake host on a real gloo process group.

    python process_rank.py RANK RANKS PORT EVERY FAILURE

Its custom all_reduce asks all peers, over gloo, which collective of which graph they are in. It prints its answers,
which steps replayed instrumented graphs, and the state of its instrumented graphs, as JSON; a difference between ranks ends it
with an exception.
"""

from __future__ import annotations

import datetime
import json
import os
import sys

import fake_host
import fakes
import torch.distributed as dist
from fake_host import InferReq, ModelInput

from lightllm_otel.worker.gpu import agreement
from lightllm_otel.worker.gpu.agreement import ballot_of_process_group


class Peers:
    def exchange(self, what):
        said = [None] * dist.get_world_size()
        dist.all_gather_object(said, what)
        if len({str(each) for each in said}) > 1:
            raise SystemExit(f"the ranks are in different collectives: {said}")

    collective = exchange


def main():
    rank, ranks, port, every = map(int, sys.argv[1:5])
    failure = sys.argv[5] if len(sys.argv) > 5 else ""
    agreement.COLLECT_SECONDS, agreement.VERDICT_SECONDS = 3.0, 6.0
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks, timeout=datetime.timedelta(0, 30))
    host = fake_host.make([1000.0], tp=2, peers=Peers())
    session = None
    if failure != "absent":
        session = fakes.FakeSession(host, every=every, strict=False, ballot=ballot_of_process_group)
        session.graphs.fails = failure == "capture"
        session.patch()
    model = host.basemodel.TpPartBaseModel("graphs")
    rpc = host.model_rpc.ModelRpcServer(model)
    plain = {id(entry[0]) for entry in model.graph.graph.values()}
    host.gpu.replayed.clear()
    answers = []
    for value in range(12):
        if failure == "clock" and value == 4:
            session.clock.fails = True
        if failure == "raises" and value == 5:
            model.broken = True
            try:
                step(rpc, value)
            except RuntimeError:
                model.broken = False
        answers.append(step(rpc, value) == fake_host.answer(ModelInput(1, 8, False, value=value)))
    instrumented_graphs = [id(graph) not in plain for graph in host.gpu.replayed]
    dist.barrier()
    report = {
        "right": all(answers),
        "instrumented_graphs": instrumented_graphs,
        "state": session.instrumented_graphs.state if session else "absent",
    }
    print(json.dumps(report), flush=True)
    os._exit(0)  # gloo's threads do not always end well


def step(rpc, value):
    rpc.waiting.append((ModelInput(1, 8, False, value=value), [InferReq(8)]))
    return rpc.decode()


if __name__ == "__main__":
    main()
