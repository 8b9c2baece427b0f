"""Several ranks as threads: each with a host and a plugin of its own, joined by a custom all_reduce that breaks."""

from __future__ import annotations

import contextlib
import threading

import fake_host
import fakes
from fake_host import InferReq, ModelInput

from lightllm_otel.worker.gpu.agreement import Ballot

TIMEOUT = 20.0


class ForeignBuffers(AssertionError):
    """A rank replayed another graph than its peers: on a GPU its all_reduce would have read other buffers."""


class Peers:
    """A meeting point. Whoever comes with something else than the others breaks it for all."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=TIMEOUT)
        self._said: dict[int, object] = {}
        self._ranks = ranks

    def meet(self, rank, what):
        self._said[rank] = what
        self._barrier.wait()
        said = dict(self._said)
        self._barrier.wait()
        if len(set(said.values())) > 1:
            raise ForeignBuffers(f"{said}")

    def of(self, rank):
        return _PeersOf(self, rank)


class _PeersOf:
    def __init__(self, peers, rank):
        self._peers, self._rank = peers, rank

    def exchange(self, what):
        self._peers.meet(self._rank, what)

    def collective(self, tag):
        self._peers.meet(self._rank, tag)


class MemoryStore:
    """As torch's store: one place for all ranks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.values: dict[str, bytes] = {}

    def set(self, key, value):
        with self._lock:
            self.values[key] = value.encode()

    def get(self, key):
        return self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)

    def compare_set(self, key, expected, desired):
        with self._lock:
            if key not in self.values and expected == "":
                self.values[key] = desired.encode()
            return self.values.get(key, expected.encode())


class Server:
    """``ranks`` model processes of one group. ``absent``: ranks without the plugin. ``prepare(rank, session)``."""

    def __init__(self, ranks=2, absent=(), prepare=None, environ=None, sizes=(1, 2, 4), **options):
        self.ranks, self.absent, self.prepare = ranks, absent, prepare or (lambda rank, session: None)
        self.environ, self.sizes, self.options = environ or (lambda rank: {}), sizes, options
        self.peers, self.store = Peers(ranks), MemoryStore()
        self.sessions: dict[int, fakes.FakeSession] = {}
        self.rpcs: dict[int, object] = {}
        self.hosts: dict[int, object] = {}
        self.graphs_replayed: dict[int, list[str]] = {}

    def start(self):
        self.in_every_rank(self._start)
        return self

    def _start(self, rank):
        host = fake_host.make([1000.0], tp=2, sizes=self.sizes, peers=self.peers.of(rank))
        self.hosts[rank] = host
        if rank not in self.absent:
            session = fakes.FakeSession(
                host, strict=False, environ=self.environ(rank), ballot=lambda: Ballot(self.store, rank, self.ranks),
                **self.options,
            )  # fmt: skip
            self.prepare(rank, session)
            self.sessions[rank] = session.patch()
        model = host.basemodel.TpPartBaseModel("graphs")
        self.rpcs[rank] = host.model_rpc.ModelRpcServer(model)
        host.gpu.replayed.clear()

    def ask(self, batch=1, context=8, value=0, broken=()):
        """A decode step on all ranks; ``broken`` ranks raise in the forward first, and are asked again."""
        answers = {}

        def step(rank):
            rpc = self.rpcs[rank]
            if rank in broken:
                rpc.model.broken = True
                with contextlib.suppress(RuntimeError):
                    self._step(rpc, batch, context, value)
                rpc.model.broken = False
            answers[rank] = self._step(rpc, batch, context, value)

        self.in_every_rank(step)
        return answers

    @staticmethod
    def _step(rpc, batch, context, value):
        rpc.waiting.append((ModelInput(batch, context, False, value=value), [InferReq(8)] * batch))
        return rpc.decode()

    def instrumented_replays(self, rank):
        """For each replay since the last call, whether it was an instrumented graph."""
        plain = {id(entry[0]) for entry in self.rpcs[rank].model.graph.graph.values()}
        replayed = [id(graph) not in plain for graph in self.hosts[rank].gpu.replayed]
        self.hosts[rank].gpu.replayed.clear()
        return replayed

    def in_every_rank(self, what):
        errors = []

        def run(rank):
            try:
                what(rank)
            except BaseException as error:  # noqa: BLE001 - shown to the test
                errors.append(error)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * TIMEOUT)
        foreign = [error for error in errors if isinstance(error, ForeignBuffers)]
        if foreign or errors:
            raise (foreign or errors)[0]

    def close(self):
        for session in self.sessions.values():
            session.undo()
