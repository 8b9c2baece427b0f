"""A server that runs for hours, in steps that are read by polls, on a manual clock."""

from __future__ import annotations

import records

from lightllm_otel.records.vocabulary import UNATTRIBUTED, Mode, Operator, Phase
from lightllm_otel.reduce.group import Group
from lightllm_otel.worker.sampling import Sampling

SCRAPE_SECONDS = 15.0


class Serving:
    """Steps of one group, scraped every 15 s into ``scrapes``: (time, estimated seconds by operator and ``unattributed``)."""

    def __init__(self, phase=Phase.DECODE, mode=Mode.GRAPH, ranks=1):
        self.now = 0.0
        self.group = Group(now=lambda: self.now)
        self.scrapes = []
        self._phase, self._mode, self._ranks, self._number, self._next = phase, mode, ranks, 0, 0.0

    def run(self, seconds, all_reduce=0.1, step=0.1, poll=5.0, every=64, tokens=1, padded=1):
        """Let it work for ``seconds``: steps of ``step`` seconds, one in ``every`` sampled (none: 0), read every ``poll``."""
        sampling, end = Sampling(every or 1), self.now + seconds
        operators = [(Operator.ALL_REDUCE, all_reduce * step), (Operator.FFN, (1 - all_reduce) * step)]
        while self.now < end - 1e-9:
            numbers = range(self._number, self._number + round(poll / step))
            self._number += len(numbers)
            batch = records.batch(*(
                records.step(
                    self._phase, self._mode, step, operators if every and sampling.due(n, self._phase, tokens) else (),
                    number=n, tokens=tokens, padded=padded,
                )
                for n in numbers
            ))  # fmt: skip
            self.now += poll
            for rank in range(self._ranks):
                self.group.add(rank, batch)
            if self.now >= self._next:
                self._next = self.now + SCRAPE_SECONDS
                self.scrapes.append((self.now, self.estimated()))

    def estimated(self):
        """What ``/metrics`` says at this moment."""
        estimate, phase = self.group.estimate, self._phase.code
        found = {operator.value: float(estimate.seconds[phase][operator.code]) for operator in Operator}
        return {**found, UNATTRIBUTED: float(estimate.unattributed[phase])}

    def step_seconds(self):
        return sum(histogram.total for histogram in self.group.steps.histograms.values())

    def rate(self, name, window=300.0, at=None):
        """As Prometheus: what the counter gained a second between the first and the last scrape of the window."""
        at = self.now if at is None else at
        seen = [(time, values[name]) for time, values in self.scrapes if at - window < time <= at]
        gained = sum(max(later - earlier, 0.0) for (_, earlier), (_, later) in zip(seen, seen[1:]))
        return gained / (seen[-1][0] - seen[0][0])

    def share(self, name, window=300.0, at=None):
        """As the dashboard: its part of the rates of all."""
        return self.rate(name, window, at) / sum(self.rate(each, window, at) for each in self.scrapes[-1][1])
