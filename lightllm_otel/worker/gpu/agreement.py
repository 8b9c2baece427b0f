"""Votes between the ranks of a model while it starts: all ranks cast the same vote, or none of them acts.

Votes go through the key-value store of the host's process group, never through a collective. A rank without the plugin would
leave the others waiting in a collective. The verdict of a vote is one key that is set once, by whichever rank comes first: a
rank that gives up writes ``no``, and the first rank writes ``yes`` when it has seen every vote. All ranks read that key, so a
time-out cannot leave two of them with different answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from lightllm_otel.guard import log

COLLECT_SECONDS = 15.0
VERDICT_SECONDS = 30.0
TRIES, RETRY_SECONDS = 10, 0.1
_POLL_SECONDS = 0.002
YES, NO = "yes", "no"


class Store(Protocol):
    """The methods of torch's ``Store`` that are used. ``compare_set`` with an expected ``""`` sets a missing key."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...

    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class Ballot:
    """One rank's side of the votes. ``name`` separates the votes of several models in one process group.

    ``clock`` and ``sleep`` work in seconds. Without a ``store``, only a single rank can agree.
    """

    def __init__(
        self,
        store: Store | None,
        rank: int,
        ranks: int,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._rank = rank
        self._ranks = ranks
        self._prefix = f"lightllm-otel/{name}"
        self._clock = clock
        self._sleep = sleep

    @property
    def ranks(self) -> int:
        """Return the number of ranks that vote."""
        return self._ranks

    @property
    def follows(self) -> bool:
        """Tell whether another rank decides where a single rank must decide."""
        return self._rank > 0

    def agree(self, topic: str, vote: str | None) -> bool:
        """Tell whether all ranks cast this vote on ``topic``; None is a no. The answer is the same on every rank.

        An error of the store counts as a no of this rank. The process group is then lost, and the host with it.
        """
        if self._store is None:
            return self._ranks == 1 and vote is not None
        verdict = f"{self._prefix}/{topic}/verdict"
        try:
            if vote is None:
                return self._settle(verdict, NO)
            self._store.set(f"{self._prefix}/{topic}/{self._rank}", vote)
            wanted = NO
            if self._rank == 0:
                wanted = YES if self._unanimous(topic, vote, verdict) else NO
            else:
                self._appears(verdict, VERDICT_SECONDS)
        except Exception as error:  # noqa: BLE001 - torch's stores raise many kinds of errors
            log.warning("the ranks could not vote on %r (%s); this rank declines", topic, error)
            wanted = NO
        return self._settle(verdict, wanted)

    def _settle(self, verdict: str, wanted: str) -> bool:
        """Set the verdict unless it is set, and return it. It retries, because others may already act on a yes."""
        assert self._store is not None
        for _ in range(TRIES):
            try:
                return self._store.compare_set(verdict, "", wanted) == YES.encode()
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("the verdict on %r cannot be read (%s)", verdict, error)
                self._sleep(RETRY_SECONDS)
        return False

    def _unanimous(self, topic: str, vote: str, verdict: str) -> bool:
        assert self._store is not None
        for rank in range(1, self._ranks):
            key = f"{self._prefix}/{topic}/{rank}"
            if not self._appears(key, COLLECT_SECONDS, unless=verdict):
                log.warning("rank %d did not vote on %r; check that lightllm-otel is installed there", rank, topic)
                return False
            if self._store.get(key) != vote.encode():
                log.warning(
                    "on %r, rank %d votes %s and rank 0 votes %s", topic, rank, self._store.get(key).decode(), vote
                )
                return False
        return True

    def _appears(self, key: str, seconds: float, unless: str | None = None) -> bool:
        """Tell whether the key is set in time. It polls, because a store client that waits blocks other threads."""
        assert self._store is not None
        deadline = self._clock() + seconds
        while not self._store.check([key]):
            if self._clock() > deadline or (unless is not None and self._store.check([unless])):
                return False
            self._sleep(_POLL_SECONDS)
        return True


def ballot_of_process_group() -> Ballot:
    """Return a ballot of all ranks in the host's default process group. A process without a group votes alone."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    if not (dist.is_available() and dist.is_initialized()):
        return Ballot(None, 0, 1)
    ranks = dist.get_world_size()
    get_store: Any = getattr(distributed_c10d, "_get_default_store", None)
    store = get_store() if ranks > 1 and get_store is not None else None
    return Ballot(store, dist.get_rank(), ranks)


def torch_distributed() -> Any:
    """Return ``torch.distributed``, whose collectives LightLLM calls."""
    import torch.distributed

    return torch.distributed
