"""Changes of the host can be taken back for a while, and come again as they were."""

import sys
import types

import pytest

from lightllm_otel.patch.closures import fixed
from lightllm_otel.patch.ledger import Ledger


class Host:
    def call(self):
        return "host"


class Derived(Host):
    pass


def wrap(host):
    return lambda *args: f"ours around {host(*args)}"


def test_a_suspended_ledger_leaves_the_host_as_it_was_and_a_resumed_one_is_back():
    own = dict(vars(Derived))
    ledger, owner = Ledger(), Derived()
    ledger.replace(Derived, "call", wrap)
    ours = vars(Derived)["call"]
    assert (owner.call(), ledger.changes) == ("ours around host", 1)
    ledger.suspend()
    assert (dict(vars(Derived)) == own, ledger.changes) == (True, 0)
    ledger.resume()
    assert vars(Derived)["call"] is ours
    ledger.undo()
    assert dict(vars(Derived)) == own


def test_copies_that_host_modules_made_of_a_function_are_put_back_too(monkeypatch):
    source, user, other = (types.ModuleType(name) for name in ("lightllm.source", "lightllm.user", "somebody.elses"))
    source.sample = host = lambda: "host"
    ledger = Ledger()
    ledger.replace(source, "sample", wrap)
    ours = user.sample = other.sample = source.sample
    for module in (source, user, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    ledger.suspend()
    assert (source.sample, user.sample, other.sample) == (host, host, ours)  # we look into the host only
    ledger.resume()
    assert (source.sample, user.sample) == (ours, ours)
    ledger.undo()
    assert (source.sample, user.sample) == (host, host)


class Timer:
    armed = None


def counted(calls):
    def measured(host, *args, **kwargs):
        calls.append((args, kwargs))
        return host(*args, **kwargs)

    return measured


def sums(a, b, out=None, *, scale=1):
    """Its own words."""
    return (a + b) * scale, out


def test_a_wrapper_has_the_signature_of_its_host_with_names_order_and_defaults():
    import inspect

    slot = fixed(sums, Timer, counted([]))
    assert str(inspect.signature(slot)) == str(inspect.signature(sums))
    assert slot(1, 2) == sums(1, 2)
    assert slot(1, b=2, out="there", scale=3) == sums(1, 2, out="there", scale=3)
    with pytest.raises(TypeError):
        slot(1)


def test_a_wrapper_measures_only_while_armed_and_passes_everything_on():
    calls = []
    slot = fixed(sums, Timer, counted(calls))
    slot(1, 2)
    assert calls == []
    Timer.armed = object()
    try:
        assert slot(1, 2, scale=2) == (6, None)
    finally:
        Timer.armed = None
    assert calls == [((1, 2, None), {"scale": 2})]


def test_a_host_without_a_plain_signature_is_wrapped_all_the_same():
    def any_arguments(*args, **kwargs):
        return args, kwargs

    for host in (any_arguments, max):
        slot = fixed(host, Timer, counted([]))
        assert slot(3, 4) == host(3, 4)


def test_default_objects_are_the_hosts_own():
    marker = object()

    def host(value=marker):
        return value

    assert fixed(host, Timer, counted([]))() is marker
