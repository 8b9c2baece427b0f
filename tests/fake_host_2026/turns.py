"""Infer threads that take turns: real threads, of which one runs at a time, until it waits for an event.

The order of calls is that of the real host, and the same in every run: the events of the two threads form a chain, so
where one thread waits, at most one other can go on.
"""

from __future__ import annotations

import threading

PATIENCE = 20.0  # seconds that a thread waits for another one before it is taken for stuck


class Ended(BaseException):
    """The test is over: the thread leaves its loop."""


class Stuck(AssertionError):
    """No thread can go on, as in a real server of which one infer thread has died."""


class _TurnEvent:
    def __init__(self, turns) -> None:
        self._turns, self._set = turns, False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout=None) -> bool:
        while not self._set:
            self._turns.hand_over(self)
        return True


class _Worker(threading.Thread):
    def __init__(self, turns, target, name) -> None:
        super().__init__(name=name, daemon=True)
        self.turn, self.awaits, self.over = threading.Semaphore(0), None, False
        self._turns, self._work = turns, target

    def run(self) -> None:
        self.turn.acquire()
        try:
            if not self._turns.closing:
                self._work()
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001 - the host has logged it; the test asks for it
            self._turns.errors.append((self.name, error))
        finally:
            self.over = True
            self._turns.back.release()

    @property
    def can_go_on(self) -> bool:
        return not self.over and (self.awaits is None or self.awaits.is_set())


class Turns:
    """``Thread`` and ``Event`` for the host's threads; :meth:`step` for the test."""

    def __init__(self) -> None:
        self.workers: list[_Worker] = []
        self.errors: list[tuple[str, BaseException]] = []
        self.back = threading.Semaphore(0)
        self.closing = False
        self._running: _Worker | None = None

    # For the host -----------------------------------------------------------------------------------------------------

    def Event(self):
        return _TurnEvent(self)

    def Thread(self, target, daemon=True):
        worker = _Worker(self, target, f"infer-{len(self.workers)}")
        self.workers.append(worker)
        return worker

    def idle(self) -> None:
        """The host's loop has nothing to do and sleeps: a turn ends."""
        self.hand_over(None)

    def hand_over(self, event) -> None:
        worker = threading.current_thread()
        assert isinstance(worker, _Worker), "only infer threads wait for each other"
        worker.awaits = event
        self.back.release()
        worker.turn.acquire()
        worker.awaits = None
        if self.closing:
            raise Ended

    # For the test -----------------------------------------------------------------------------------------------------

    def step(self) -> str:
        """Let one thread run until it waits, sleeps or ends; returns its name.

        It is the one that has not run last, if it can go on. Raises Stuck when no thread can.
        """
        ready = [worker for worker in self.workers if worker.can_go_on]
        if not ready:
            raise Stuck("no infer thread can go on")
        worker = next((each for each in ready if each is not self._running), ready[0])
        self._running = worker
        worker.turn.release()
        assert self.back.acquire(timeout=PATIENCE), f"{worker.name} does not give its turn back"
        return worker.name

    def close(self) -> None:
        """End all threads where they wait."""
        self.closing = True
        for worker in self.workers:
            if worker.is_alive():
                worker.turn.release()
                worker.join(PATIENCE)


class _FreeEvent(threading.Event):
    def __init__(self, threads) -> None:
        super().__init__()
        self._threads = threads

    def wait(self, timeout=None) -> bool:
        waited = 0.0
        while not super().wait(0.05):
            waited += 0.05
            if self._threads.closing:
                raise Ended
            if waited > PATIENCE:
                raise Stuck("the other infer thread does not come")
        return True


class Free:
    """The same for threads that run as the operating system lets them."""

    def __init__(self) -> None:
        self.workers: list[threading.Thread] = []
        self.errors: list[tuple[str, BaseException]] = []
        self.closing = False

    def Event(self):
        return _FreeEvent(self)

    def Thread(self, target, daemon=True):
        def work():
            try:
                target()
            except Ended:
                pass
            except BaseException as error:  # noqa: BLE001 - the test asks for it
                self.errors.append((threading.current_thread().name, error))

        worker = threading.Thread(target=work, name=f"infer-{len(self.workers)}", daemon=True)
        self.workers.append(worker)
        return worker

    def idle(self) -> None:
        if self.closing:
            raise Ended
        threading.Event().wait(0.001)

    def step(self) -> str:
        threading.Event().wait(0.001)
        return ""

    def close(self) -> None:
        self.closing = True
        for worker in self.workers:
            worker.join(PATIENCE)
