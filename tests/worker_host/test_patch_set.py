"""Patch set: changes of the host can be suspended and resumed."""

import sys
import types

from lightllm_otel.contracts.patch_set import PatchSet


class Host:
    def call(self):
        return "host"


class Derived(Host):
    pass


def wrap(host):
    return lambda *args: f"ours around {host(*args)}"


def test_a_suspended_patch_set_leaves_the_host_as_it_was_and_a_resumed_one_is_back():
    own = dict(vars(Derived))
    patch_set, owner = PatchSet(), Derived()
    patch_set.replace(Derived, "call", wrap)
    ours = vars(Derived)["call"]
    assert (owner.call(), patch_set.changes) == ("ours around host", 1)
    patch_set.suspend()
    assert (dict(vars(Derived)) == own, patch_set.changes) == (True, 0)
    patch_set.resume()
    assert vars(Derived)["call"] is ours
    patch_set.undo()
    assert dict(vars(Derived)) == own


def test_copies_that_host_modules_made_of_a_function_are_put_back_too(monkeypatch):
    source, user, other = (types.ModuleType(name) for name in ("lightllm.source", "lightllm.user", "somebody.elses"))
    source.sample = host = lambda: "host"
    patch_set = PatchSet()
    patch_set.replace(source, "sample", wrap)
    ours = user.sample = other.sample = source.sample
    for module in (source, user, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    patch_set.suspend()
    assert (source.sample, user.sample, other.sample) == (host, host, ours)  # we look into the host only
    patch_set.resume()
    assert (source.sample, user.sample) == (ours, ours)
    patch_set.undo()
    assert (source.sample, user.sample) == (host, host)


def test_what_somebody_else_has_put_around_ours_is_left_alone():
    patch_set, owner = PatchSet(), Derived()
    patch_set.replace(Derived, "call", wrap)
    ours = Derived.call
    Derived.call = theirs = lambda self: f"theirs around {ours(self)}"
    patch_set.suspend()
    assert Derived.call is theirs
    patch_set.resume()
    assert owner.call() == "theirs around ours around host"
    del Derived.call
