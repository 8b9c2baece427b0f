"""Spans on their way: what a receiver that is slow, refuses, hangs or is gone costs, counted span by span."""

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import records

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otlp-grpc is not installed")

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from receiver import Receiver, closed_port

from lightllm_otel.exporter import otlp_spans as spans_module
from lightllm_otel.exporter.otlp_sender import OtlpSender, loaded
from lightllm_otel.exporter.otlp_spans import OtlpSpans
from lightllm_otel.exporter.spans import Context, SpanData
from lightllm_otel.otel_environment import OtelEnvironment
from lightllm_otel.records.vocabulary import Signal, SpanDrop
from lightllm_otel.reduce.group import Group

ROOT = Path(__file__).resolve().parents[2]
REQUEST, STEP = "chat m", "lightllm.step decode"
SECONDS = 10.0


class Book:
    """Stands for a TraceBook: gives out what a test puts into ``ready``."""

    def __init__(self):
        self.ready = []

    def settle(self, now):
        made, self.ready = self.ready, []
        return made

    def close(self):
        return []


class Gate(SpanExporter):
    """An exporter whose receiver answers only while ``open`` is set. ``taken``: names of spans."""

    def __init__(self, *, is_open=True, answer=SpanExportResult.SUCCESS):
        self.open, self.entered, self.taken, self.answer = threading.Event(), threading.Event(), [], answer
        if is_open:
            self.open.set()

    def export(self, spans):
        self.entered.set()
        assert self.open.wait(SECONDS)
        if isinstance(self.answer, Exception):
            raise self.answer
        self.taken += [span.name for span in spans]
        return self.answer

    def shutdown(self):
        self.open.set()


class Sending:
    """A SpanPush between a book and receivers."""

    def __init__(self, receivers, **otel_environment):
        self.group, self.book, self.otlp_sender = Group(), Book(), OtlpSender()
        self.group.set_facts(0, records.FACTS)
        settings = OtelEnvironment(
            traces=("x",), **{"span_delay": 0.02, "span_queue": 8, "span_batch": 4, **otel_environment}
        )
        self.push = OtlpSpans(receivers, settings, self.group, self.book, self.otlp_sender, "group")
        self.made = 0

    def put(self, *names):
        for name in names:
            self.made += 1
            self.book.ready.append(SpanData(name, Context(1, self.made), None, 0, 1, {}))
        self.push.poll()

    @property
    def queues(self):
        return [*self.push.requests, *self.push.steps]

    def settled(self):
        """Wait until nothing is on its way, and return (exported, failed, dropped)."""
        until(lambda: not any(queue.waiting for queue in self.queues))
        until(lambda: self.counted() == self.made)
        exported = sum(queue.exporter.exported for queue in self.queues)
        return exported, self.otlp_sender.dropped[SpanDrop.RECEIVER], self.otlp_sender.dropped[SpanDrop.QUEUE]

    def counted(self):
        """Spans that were exported, failed or were dropped, or still wait."""
        exported = sum(queue.exporter.exported for queue in self.queues)
        lost = self.otlp_sender.dropped
        return exported + lost[SpanDrop.RECEIVER] + lost[SpanDrop.QUEUE] + sum(queue.waiting for queue in self.queues)


def until(what):
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.005)


@pytest.fixture
def sending():
    """``sending(requests, steps, …)`` → a Sending whose receivers are let go at the end."""
    made, gates = [], []

    def make(*pair, **otel_environment):
        gates.extend(pair)
        made.append(Sending([pair], **otel_environment))
        return made[-1]

    yield make
    for gate in gates:
        gate.open.set()
    for each in made:
        each.push.close()


def test_a_flood_of_steps_displaces_no_request(sending):
    requests, steps = Gate(is_open=False), Gate(is_open=False)
    sent = sending(requests, steps)
    sent.put(*[STEP] * 100)
    assert sent.otlp_sender.dropped[SpanDrop.QUEUE] >= 100 - 8 - 4  # the queue's, and a batch that is on its way
    before = sent.otlp_sender.dropped[SpanDrop.QUEUE]
    sent.put(*[REQUEST] * 8)
    assert sent.otlp_sender.dropped[SpanDrop.QUEUE] == before
    requests.open.set()
    until(lambda: len(requests.taken) == 8)  # while steps hang
    assert set(requests.taken) == {REQUEST}
    assert steps.taken == []


def test_a_full_queue_keeps_what_came_first(sending):
    gate = Gate(is_open=False)
    sent = sending(gate, Gate())
    sent.put(*map(str, range(4)))
    assert gate.entered.wait(SECONDS)  # a batch is on its way, the queue is empty
    sent.put(*map(str, range(4, 20)))
    assert sent.otlp_sender.dropped[SpanDrop.QUEUE] == 8
    gate.open.set()
    assert sent.settled() == (12, 0, 8)
    assert gate.taken == [str(number) for number in range(12)]


@pytest.mark.parametrize("answer", [SpanExportResult.FAILURE, RuntimeError("no"), None], ids=str)
def test_every_span_is_exported_or_counted_as_lost(sending, answer):
    sent = sending(Gate(), Gate(answer=answer))
    for _ in range(50):
        sent.put(REQUEST, STEP, STEP)
    exported, failed, dropped = sent.settled()
    assert exported + failed + dropped == 150
    assert exported <= 50
    assert failed > 0
    assert sent.otlp_sender.errors[Signal.TRACES] >= failed / 4


def test_spans_that_cannot_be_made_take_no_room(sending, monkeypatch):
    sent = sending(Gate(), Gate())
    make = spans_module.sdk_span
    monkeypatch.setattr(spans_module, "sdk_span", lambda span, who: 1 / 0)
    for _ in range(20):
        with pytest.raises(ZeroDivisionError):
            sent.put(REQUEST)
    monkeypatch.setattr(spans_module, "sdk_span", make)
    sent.put(REQUEST)
    until(lambda: sent.push.requests[0].exporter.exported == 1)


def test_a_queue_may_be_smaller_than_a_batch(sending):
    gate = Gate()
    sent = sending(gate, Gate(), span_queue=2, span_batch=512)
    sent.put(REQUEST, REQUEST)
    assert sent.settled() == (2, 0, 0)


def test_a_receiver_that_is_down_for_long_costs_bounded_memory_and_all_resumes_when_it_is_back(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "lightllm_otel")
    port = closed_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    sent = Sending(loaded(Signal.TRACES, ["otlp_proto_http"], copies=2))
    for _ in range(300):
        sent.put(*[REQUEST] * 10, *[STEP] * 10)
        assert all(queue.waiting <= 8 for queue in sent.queues)
    assert sent.counted() >= sent.made - 2 * 4  # all but a batch of each that is on its way
    until(
        lambda: all(queue.exporter.received >= 8 for queue in sent.queues)
    )  # the first batch of each has been given up
    receiver = Receiver("http/protobuf", port)
    try:
        until(lambda: not any(queue.waiting for queue in sent.queues))
        sent.put(REQUEST, STEP)
        receiver.wait(lambda r: {REQUEST, STEP} <= {span.name for span in r.spans()}, 20)
        exported, failed, dropped = sent.settled()
        assert exported == len(receiver.spans())
        assert exported + failed + dropped == sent.made
        sent.push.close()
    finally:
        receiver.close()
    lines = sorted(record.message.partition(":")[0] for record in caplog.records if record.name == "lightllm_otel")
    assert lines == [
        "traces of requests over OTLP arrive again",
        "traces of requests over OTLP do not arrive; the next batch is sent all the same",
        "traces of steps over OTLP arrive again",
        "traces of steps over OTLP do not arrive; the next batch is sent all the same",
    ]  # fmt: skip


def test_the_end_sends_what_waits(sending):
    gates = Gate(), Gate()
    sent = sending(*gates, span_delay=60.0)
    sent.book.ready = [
        SpanData(name, Context(1, number), None, 0, 1, {}) for number, name in enumerate((REQUEST, STEP), 1)
    ]
    sent.push.close()
    assert [gate.taken for gate in gates] == [[REQUEST], [STEP]]


def test_the_end_waits_for_no_receiver_longer_than_it_may(sending, monkeypatch):
    monkeypatch.setattr(spans_module, "LAST_SECONDS", 0.2)
    sent = sending(Gate(is_open=False), Gate(is_open=False))
    sent.put(*[REQUEST] * 8, *[STEP] * 8)
    began = time.monotonic()
    sent.push.close()
    assert time.monotonic() - began < 2.0


PROCESS = """
import sys, time
from pathlib import Path
from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.exporter.spans import Context, SpanData
from lightllm_otel.settings import Settings
from lightllm_otel.otel_environment import OtelEnvironment
import os
exporter = Exporter(Path(sys.argv[1]), Settings.from_env({}), otel_environment=OtelEnvironment.from_env(os.environ))
(push,) = exporter._pushes
push._put([SpanData(name, Context(1, n), None, 0, 1, {}) for n in range(1, 900) for name in ("chat m", "lightllm.step x")])
time.sleep(0.5)
print("ends", flush=True)
exporter.close()
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("fault", ["hangs", "is gone"])
def test_an_exporter_ends_in_time_whatever_its_receiver_does(protocol, fault, tmp_path, plain_environment):
    receiver = Receiver(protocol)
    receiver.mood = "hang"
    environ = {
        **plain_environment,
        **receiver.environ,
        "OTEL_METRICS_EXPORTER": "none",
        "PYTHONPATH": str(ROOT),
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    if fault == "is gone":
        receiver.close()
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path)], env=environ, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ends\n"
        began = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - began < spans_module.LAST_SECONDS + 4
    finally:
        process.kill()
        process.communicate()
        if fault != "is gone":
            receiver.close()
