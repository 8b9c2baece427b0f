"""Load the SDK's exporters, send batches to a receiver, and count what becomes of each batch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from lightllm_otel.guard import log
from lightllm_otel.installation import install_command
from lightllm_otel.records.vocabulary import Signal, SpanDrop

EXTRAS = {"otlp_proto_http": "otlp", "otlp_proto_grpc": "otlp-grpc", "console": "otlp"}  # console is the SDK's own
LAST_WORDS = 300  # characters of what the SDK's exporter says of a failure


@dataclasses.dataclass
class OtlpSender:
    """Counters of batches that failed and of spans that were dropped. Several threads add to them."""

    errors: dict[Signal, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(Signal, 0))
    dropped: dict[SpanDrop, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SpanDrop, 0))
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    def failed(self, signal: Signal) -> None:
        with self._lock:
            self.errors[signal] += 1

    def drop(self, reason: SpanDrop, spans: int) -> None:
        with self._lock:
            self.dropped[reason] += spans


class Outcomes:
    """Counts batches of ``signal`` that failed, and logs one line when they begin to fail and one when they arrive again.

    ``what``: how the log names what is sent.
    """

    def __init__(self, signal: Signal, what: str, otlp_sender: OtlpSender) -> None:
        self._signal, self._what, self._otlp_sender = signal, what, otlp_sender
        self._failing = False

    def add(self, taken: bool, said: str) -> None:
        if not taken:
            self._otlp_sender.failed(self._signal)
        if taken is self._failing:
            self._failing = not taken
            if taken:
                log.info("%s over OTLP arrive again", self._what)
            else:
                log.warning(
                    "%s over OTLP do not arrive; the next batch is sent all the same: %s", self._what, said[:LAST_WORDS]
                )


class NoSuchExporter(LookupError):
    """The exporter is not installed; the message says what to do."""


def load(signal: Signal, name: str) -> Any:
    """Return the SDK's exporter of that name, configured by the standard variables. Raises NoSuchExporter."""
    group = f"opentelemetry_{signal.value}_exporter"
    points: Any = importlib.metadata.entry_points()
    found = points.select(group=group) if hasattr(points, "select") else points.get(group, ())
    for point in found:
        if point.name == name:
            return point.load()()
    extra = EXTRAS.get(name)
    remedy = install_command(extra) if extra else f"install the package that brings {name}"
    raise NoSuchExporter(f"no exporter {name} for {signal.value} is installed: {remedy}. /metrics is not affected")


def loaded(signal: Signal, names: Iterable[str], copies: int = 1) -> list[tuple[Any, ...]]:
    """Return ``copies`` of each of the SDK's exporters ``names``. Log one line for each name that fails."""
    found = []
    for name in names:
        try:
            found.append(tuple(load(signal, name) for _ in range(copies)))
        except NoSuchExporter as error:
            log.error("%s over OTLP are off: %s", signal, error)
        except Exception as error:  # noqa: BLE001 - the settings of a receiver may be wrong in any way
            log.error("%s over OTLP are off: the exporter %s could not be created: %r", signal, name, error)
    return found


class Sender:
    """Thread that passes batches to ``send``, which returns True if the receiver took the batch.

    One batch may wait while another is sent; a further one is refused.
    """

    def __init__(self, signal: Signal, send: Callable[[Any], bool], otlp_sender: OtlpSender) -> None:
        self._send = send
        self._outcomes = Outcomes(signal, str(signal), otlp_sender)
        self._waiting: queue.Queue[Any] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"otlp {signal.value}")
        self._thread.start()

    def offer(self, batch: Any) -> bool:
        """Queue a batch and return True, or return False and count an error if the receiver is too slow."""
        try:
            self._waiting.put_nowait(batch)
        except queue.Full:
            self._outcomes.add(False, "the receiver is too slow, and a batch was left out")
            return False
        return True

    def _run(self) -> None:
        last_words.listen()
        while True:
            batch = self._waiting.get()
            last_words.forget()
            try:
                taken = self._send(batch)
            except Exception as error:  # noqa: BLE001 - every error of a receiver is counted and logged
                self._outcomes.add(False, repr(error))
            else:
                self._outcomes.add(taken, last_words.said())
            self._waiting.task_done()

    def drain(self, seconds: float) -> bool:
        """Wait up to ``seconds`` until all batches have been sent, and return True if they have."""
        deadline = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self._waiting.unfinished_tasks


class _LastWords(logging.Handler):
    """Log handler that keeps the SDK's last line of each thread, so that a receiver that is down cannot fill our log."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[int, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._lines[record.thread or 0] = " ".join(record.getMessage().split())

    def listen(self) -> None:
        logger = logging.getLogger("opentelemetry")
        if self not in logger.handlers:
            logger.addHandler(self)
            logger.propagate = False

    def forget(self) -> None:
        self._lines.pop(threading.get_ident(), None)

    def said(self) -> str:
        return self._lines.get(threading.get_ident(), "the receiver gave no reason")


last_words = _LastWords()


class Interval:
    """Timer on a monotonic clock. It is due for the first time after one interval."""

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._next = now + seconds

    def due(self, now: float) -> bool:
        if now < self._next:
            return False
        self._next = max(self._next + self._seconds, now)
        return True


def wall_nanoseconds(wall: Callable[[], float] = time.time) -> int:
    return int(wall() * 1e9)
