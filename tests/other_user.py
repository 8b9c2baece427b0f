"""Do something as another Unix user, in a process of its own. Tests that need one run as root, and skip elsewhere."""

import os
import pickle
import signal
import warnings

import pytest

# Made up: no account is needed to run as one of them. Test runs side by side have users of their own.
VICTIM = 20_000 + os.getpid() % 20_000
ATTACKER = VICTIM + 20_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


class Died(Exception):
    """The process was ended by this signal."""


def as_user(uid, action, *args, umask=0o022):
    """Return what ``action`` returns there, or raise what it raises."""
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads
        child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            _become(uid, umask)
            with os.fdopen(theirs, "wb") as pipe:
                pipe.write(_outcome(action, args))
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise Died(signal.Signals(os.WTERMSIG(status)).name)
    done, value = pickle.loads(answer)
    if not done:
        raise value
    return value


def _become(uid, umask):
    os.umask(umask)
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _outcome(action, args):
    try:
        return pickle.dumps((True, action(*args)))
    except BaseException as error:  # noqa: BLE001 - it is handed over
        try:
            whole = pickle.dumps((False, error))
            pickle.loads(whole)
        except Exception:  # noqa: BLE001 - not every error can be
            return pickle.dumps((False, AssertionError(f"{type(error).__name__}: {error}")))
        return whole
