"""Clean exit on signals, for commands that must restore something or stop other processes."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_by_signals(status: int | None = None) -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP inside the block, so that every ``finally`` runs. Only for the main thread.

    ``status``: exit status of the process; default: 128 plus the signal's number, as in a shell.
    """
    # nohup ignores SIGHUP, and the process should then continue.
    own = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in own}
    for number in own:
        signal.signal(number, lambda got, _: sys.exit(128 + got if status is None else status))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
