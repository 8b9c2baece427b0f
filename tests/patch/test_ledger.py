"""Changes of the host can be taken back for a while, and come again as they were."""

import sys
import types

import pytest

from lightllm_otel.patch.closures import as_operator, handing_on
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


def test_what_somebody_else_has_put_around_ours_is_left_alone():
    ledger, owner = Ledger(), Derived()
    ledger.replace(Derived, "call", wrap)
    ours = Derived.call
    Derived.call = theirs = lambda self: f"theirs around {ours(self)}"
    ledger.suspend()
    assert Derived.call is theirs
    ledger.resume()
    assert owner.call() == "theirs around ours around host"
    del Derived.call


class Timer:
    armed = None


def counted(calls):
    def measured(host, *args, **kwargs):
        calls.append((args, kwargs))
        return host(*args, **kwargs)

    return measured


class Marking:
    """Writes down what it is told."""

    def __init__(self, pairs=False):
        self.pairs, self.context, self.marks, self.fails = pairs, -1, [], False

    def mark(self, code):
        if self.fails:
            raise RuntimeError("cudaErrorIllegalAddress")
        self.marks.append(code)


def operator(host, marking, lead=7, swallow=True):
    """``host`` as an operator with the mark 1, and the errors of ours that were caught."""
    timer, caught = types.SimpleNamespace(armed=marking), []
    hook = as_operator(host, timer, 1, lead, 9, lambda error: caught.append(error) or swallow)
    return hook, caught


@pytest.mark.parametrize(
    ("lead", "pairs", "marks"), [(7, False, [7, 1]), (None, False, [1]), (7, True, [9, 1]), (None, True, [9, 1])]
)
def test_an_operator_marks_what_leads_to_it_and_its_end(lead, pairs, marks):
    marking = Marking(pairs)
    hook, _ = operator(lambda value: (value, marking.context), marking, lead)
    assert hook(3) == (3, 1)  # while it runs it is what collectives are cut out of
    assert (marking.marks, marking.context) == (marks, -1)


def test_an_operator_inside_another_is_part_of_it():
    marking = Marking()
    marking.context = 5
    hook, _ = operator(lambda value: value, marking)
    assert (hook(3), marking.marks, marking.context) == (3, [], 5)


def test_an_operator_passes_the_hosts_exception_on_and_ends_all_the_same():
    def broken(value):
        raise KeyError(value)

    marking = Marking()
    hook, caught = operator(broken, marking)
    with pytest.raises(KeyError, match="3"):
        hook(3)
    assert (marking.marks, marking.context, caught) == ([7, 1], -1, [])


@pytest.mark.parametrize("swallow", [True, False])
def test_an_operator_calls_its_host_once_whatever_our_marks_do(swallow):
    calls, marking = [], Marking()
    marking.fails = True
    hook, caught = operator(lambda value: calls.append(value) or "result", marking, swallow=swallow)
    if swallow:
        assert (hook(3), calls, len(caught)) == ("result", [3], 2)
    else:  # tests see our errors
        with pytest.raises(RuntimeError):
            hook(3)


def sums(a, b, out=None, *, scale=1):
    """Its own words."""
    return (a + b) * scale, out


def test_a_wrapper_has_the_signature_of_its_host_with_names_order_and_defaults():
    import inspect

    slot = handing_on(sums, Timer, counted([]))
    assert str(inspect.signature(slot)) == str(inspect.signature(sums))
    assert slot(1, 2) == sums(1, 2)
    assert slot(1, b=2, out="there", scale=3) == sums(1, 2, out="there", scale=3)
    with pytest.raises(TypeError):
        slot(1)


def test_a_wrapper_measures_only_while_armed_and_passes_everything_on():
    calls = []
    slot = handing_on(sums, Timer, counted(calls))
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
        slot = handing_on(host, Timer, counted([]))
        assert slot(3, 4) == host(3, 4)


def test_a_decorator_that_takes_other_arguments_than_what_it_wraps_is_taken_as_it_is():
    import functools

    def host(a, b):
        return a + b

    @functools.wraps(host)
    def injecting(a):
        return host(a, 40)

    assert handing_on(injecting, Timer, counted([]))(2) == 42


def test_default_objects_are_the_hosts_own():
    marker = object()

    def host(value=marker):
        return value

    assert handing_on(host, Timer, counted([]))() is marker
