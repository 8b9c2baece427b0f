"""Any sequence of changes, with wrappers of others in between, ends with the host's own functions."""

import sys
import types

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightllm_otel.contracts.patch_set import PatchSet

FEW = settings(
    max_examples=300, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
PLACES = st.integers(0, 4)
ACTIONS = st.one_of(
    st.tuples(st.just("replace"), PLACES),
    st.tuples(st.just("replace"), PLACES),
    st.tuples(st.just("wrap_as_somebody_else"), PLACES),
    st.tuples(st.just("wrap_as_somebody_else"), PLACES),
    st.tuples(st.just("unwrap_as_somebody_else"), PLACES),
    st.tuples(st.just("suspend")),
    st.tuples(st.just("resume")),
    st.tuples(st.just("undo")),
    st.tuples(st.just("copy")),
)
MISSING = object()


class Host:
    """A function of a module and its copy in another one; a method, a subclass that inherits it, an instance with its own."""

    def __init__(self, modules):
        class Base:
            def call(*_):
                return ["host"]

        class Derived(Base):
            pass

        self.source, self.user = types.ModuleType("lightllm.source"), types.ModuleType("lightllm.user")
        self.source.call = lambda *_: ["host"]
        self.user.call = self.source.call
        instance, plain = Derived(), Derived()
        instance.call = lambda *_: ["host"]
        modules.update({"lightllm.source": self.source, "lightllm.user": self.user})
        self.owners = (Base, Derived, instance, plain, self.source)
        self.before = self.now()

    def now(self):
        return [vars(owner).get("call", MISSING) for owner in (*self.owners, self.user)]


class Tried:
    """The host, our patch set, and somebody else who also wraps."""

    def __init__(self, modules):
        self.host, self.patch_set = Host(modules), PatchSet()
        self.theirs = []  # (owner, what lay there, their wrapper, their tag)
        self.others = False  # whether anybody else has ever been here

    def replace(self, place):
        self.patch_set.replace(self.host.owners[place], "call", lambda host: lambda *_: ["ours", *host()])

    def wrap_as_somebody_else(self, place):
        owner, tag, self.others = self.host.owners[place], f"theirs {len(self.theirs)}", True
        own, host = vars(owner).get("call", MISSING), owner.call

        def wrapper(*_):
            return [tag, *host()]

        owner.call = wrapper
        self.theirs.append((owner, own, wrapper, tag))

    def unwrap_as_somebody_else(self, place):
        """The last wrapper of theirs there, unless something lies around it by now."""
        owner = self.host.owners[place]
        for each in reversed(self.theirs):
            if each[0] is owner:
                if vars(owner).get("call") is each[2]:
                    if each[1] is MISSING:
                        del owner.call
                    else:
                        owner.call = each[1]
                    self.theirs.remove(each)
                return

    def copy(self):
        """``from lightllm.source import call``, as a module that is imported now does; of the host's or of ours."""
        if not any(owner is self.host.source for owner, *_ in self.theirs):
            self.host.user.call = self.host.source.call

    def suspend(self):
        self.patch_set.suspend()

    def resume(self):
        self.patch_set.resume()

    def undo(self):
        self.patch_set.undo()

    def check_calls(self):
        """Everybody gets the host's answer, through all wrappers of others."""
        for owner in (*self.host.owners, self.host.user):
            answer = owner.call()
            assert answer[-1] == "host"
            assert {tag for other, *_, tag in self.theirs if other is owner} <= set(answer)
        if self.patch_set.suspended and not self.others:
            assert self.host.now() == self.host.before

    def end(self):
        """Others take theirs away as well, in whatever order lets them."""
        for _ in range(len(self.theirs) + 1):
            self.undo()
            for place in range(len(self.host.owners)):
                self.unwrap_as_somebody_else(place)
        self.undo()


@FEW
@given(actions=st.lists(ACTIONS, max_size=14))
def test_any_sequence_ends_with_the_hosts_own_functions(actions):
    before = dict(sys.modules)
    try:
        tried = Tried(sys.modules)
        for action, *arguments in actions:
            getattr(tried, action)(*arguments)
            tried.check_calls()
        tried.end()
        assert tried.host.now() == tried.host.before
        assert tried.patch_set.changes == 0
        assert not tried.theirs
    finally:
        for name in ("lightllm.source", "lightllm.user"):
            del sys.modules[name]
        sys.modules.update(before)
