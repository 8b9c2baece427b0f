"""Commands that must put something back end like Python ends, also when they are told to by a signal."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_by_signals(status: int | None = None) -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit in the block, so that every ``finally`` has its turn. In the main thread only.

    ``status``: of the process; default: as a shell gives it, 128 and the signal's number.
    """
    # Who started us with nohup wants us to go on.
    own = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in own}
    for number in own:
        signal.signal(number, lambda got, _: sys.exit(128 + got if status is None else status))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
