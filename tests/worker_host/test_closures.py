"""Wrappers of LightLLM's functions: they hand on whatever they are called with, and mark what they measure."""

import functools
import inspect
import threading
import types

import pytest

from lightllm_otel.worker.host.closures import as_inner_operator, as_operator, handing_on

OWN, LEAD, BETWEEN, PART = 1, 7, 9, 100  # PART: what a piece of an operator adds to its code


class Marking:
    """Writes down what it is told."""

    def __init__(self, pairs=False, thread=None):
        self.pairs, self.context, self.codes, self.fails, self.in_collective = pairs, -1, [0], False, False
        if thread is not None:
            self.thread = thread

    @property
    def marks(self):
        return self.codes[1:]

    def mark(self, code):
        if self.fails:
            raise RuntimeError("cudaErrorIllegalAddress")
        self.codes.append(code)


def timer_of(marking):
    return types.SimpleNamespace(armed=marking, marks=types.SimpleNamespace(part=lambda code: code + PART))


def operator(host, marking, lead=LEAD, swallow=True, **options):
    """``host`` as an operator, and the errors of ours that were caught."""
    caught = []
    hook = as_operator(
        host, timer_of(marking), OWN, lead, BETWEEN, lambda error: caught.append(error) or swallow, **options
    )
    return hook, caught


def counted(calls):
    def measured(host, marking, args, kwargs):
        calls.append((args, kwargs))
        return host(*args, **kwargs)

    return measured


def sums(a, b, out=None, *, scale=1):
    """Its own words."""
    return (a + b) * scale, out


def any_arguments(*args, **kwargs):
    return args, kwargs


MAKERS = {
    "operator": lambda host, marking: operator(host, marking)[0],
    "inner operator": lambda host, marking: as_inner_operator(host, timer_of(marking), OWN, LEAD, lambda error: True),
    "handing on": lambda host, marking: handing_on(host, timer_of(marking), counted([])),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


class TestCalls:
    @pytest.mark.parametrize("armed", [False, True])
    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [
            ((), {}),
            ((1, 2), {}),
            ((1,), {"b": 2}),
            ((), {"host": 1, "timer": 2, "marking": 3, "self": 4, "args": 5, "kwargs": 6}),
        ],
    )
    def test_arguments_arrive_as_they_were_given(self, make, armed, args, kwargs):
        assert make(any_arguments, Marking() if armed else None)(*args, **kwargs) == (args, kwargs)

    @pytest.mark.parametrize("armed", [False, True])
    def test_wrong_arguments_are_the_hosts_to_refuse(self, make, armed):
        slot = make(sums, Marking() if armed else None)
        with pytest.raises(TypeError, match=r"sums\(\) missing 1 required positional argument: 'b'"):
            slot(1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
            slot(1, 2, other=3)

    def test_objects_are_the_hosts_own(self, make):
        marker = object()
        assert make(lambda value=marker: value, None)() is marker
        assert make(lambda value: value, Marking())(marker) is marker

    def test_it_has_the_name_words_and_signature_of_its_host(self, make):
        slot = make(sums, None)
        assert (slot.__name__, slot.__doc__, slot.__wrapped__) == ("sums", "Its own words.", sums)
        assert str(inspect.signature(slot)) == str(inspect.signature(sums))

    def test_what_is_written_onto_a_function_of_the_hosts_can_be_read(self, make):
        def host():
            """Tuned."""

        host.tuned = True
        assert make(host, None).tuned

    @pytest.mark.parametrize(
        "host",
        [
            max,
            functools.partial(max, 2),
            [3].__contains__,
            type("Callable", (), {"__call__": lambda self, a, b: max(a, b)})(),
        ],
        ids=["C function", "partial", "method of a C type", "object"],
    )
    def test_whatever_can_be_called_is_wrapped(self, make, host):
        arguments = (
            (3,) if not isinstance(host, functools.partial) and host != max and hasattr(host, "__self__") else (3, 1)
        )
        for marking in (None, Marking()):
            assert make(host, marking)(*arguments) == host(*arguments)

    def test_an_object_with_odd_attributes_is_wrapped(self, make):
        class Odd:
            __name__ = 5

            def __call__(self, value):
                return value

            def __getattr__(self, name):
                raise RuntimeError("not for you")

        host = Odd()
        slot = make(host, None)
        assert slot(3) == 3
        assert slot.__wrapped__ is host

    def test_a_decorator_that_takes_other_arguments_than_what_it_wraps_is_taken_as_it_is(self, make):
        @functools.wraps(sums)
        def injecting(a):
            return sums(a, 40)

        assert make(injecting, None)(2) == (42, None)


class TestOperators:
    @pytest.mark.parametrize(
        ("lead", "pairs", "marks"),
        [(LEAD, False, [LEAD, OWN]), (None, False, [OWN]), (LEAD, True, [BETWEEN, OWN]), (None, True, [BETWEEN, OWN])],
    )
    def test_an_operator_marks_what_leads_to_it_and_its_end(self, lead, pairs, marks):
        marking = Marking(pairs)
        hook, _ = operator(lambda value: (value, marking.context), marking, lead)
        assert hook(3) == (3, OWN)  # while it runs it is what collectives are cut out of
        assert (marking.marks, marking.context) == (marks, -1)

    def test_an_operator_inside_another_is_part_of_it(self):
        marking = Marking()
        marking.context = 5
        hook, _ = operator(lambda value: value, marking)
        assert (hook(3), marking.marks, marking.context) == (3, [], 5)

    def test_an_operator_passes_the_hosts_exception_on_and_ends_all_the_same(self):
        def broken(value):
            raise KeyError(value)

        marking = Marking()
        hook, caught = operator(broken, marking)
        with pytest.raises(KeyError, match="3"):
            hook(3)
        assert (marking.marks, marking.context, caught) == ([LEAD, OWN], -1, [])

    @pytest.mark.parametrize("swallow", [True, False])
    def test_an_operator_calls_its_host_once_whatever_our_marks_do(self, swallow):
        calls, marking = [], Marking()
        marking.fails = True
        hook, caught = operator(lambda value: calls.append(value) or "result", marking, swallow=swallow)
        if swallow:
            assert (hook(3), calls, len(caught), marking.context) == ("result", [3], 2, -1)
        else:  # tests see our errors
            with pytest.raises(RuntimeError):
                hook(3)

    def test_a_call_that_returns_its_argument_has_launched_nothing(self):
        marking, tensor = Marking(), object()
        hook, _ = operator(lambda value, other=None: other or value, marking, unless_returned=True)
        hook(tensor)
        hook(tensor, other=tensor)
        assert marking.marks == [LEAD, LEAD]  # what came before it has ended all the same
        hook(tensor, other=[])
        assert marking.marks[2:] == [LEAD]
        assert operator(lambda value: object(), marking, unless_returned=True)[0](tensor) is not tensor
        assert marking.marks[3:] == [LEAD, OWN]

    def test_a_call_that_could_return_its_argument_is_marked_when_it_raises(self):
        marking = Marking()
        hook, _ = operator(any_arguments, marking, unless_returned=True)
        broken, _ = operator(lambda: 1 / 0, marking, unless_returned=True)
        with pytest.raises(ZeroDivisionError):
            broken()
        assert marking.marks == [LEAD, OWN]
        assert hook(1) == ((1,), {})

    def test_an_operator_that_has_begun_is_not_begun_again(self):
        marking = Marking()
        hook, _ = operator(any_arguments, marking, begun=(LEAD, OWN + PART))
        marking.mark(LEAD)
        hook()
        marking.mark(OWN + PART)
        hook()
        assert marking.marks == [LEAD, OWN, OWN + PART, OWN]

    def test_an_operator_inside_another_can_be_cut_out_of_it(self):
        marking = Marking()
        inner = as_inner_operator(lambda: marking.context, timer_of(marking), 2, LEAD, lambda error: False)
        outer, _ = operator(lambda: (inner(), marking.context), marking, lead=None)
        assert outer() == (2, OWN)
        assert marking.marks == [OWN + PART, 2, OWN]
        assert inner() == 2
        assert marking.marks[3:] == [LEAD, 2]

    @pytest.mark.parametrize("at_the_start", [True, False])
    def test_an_inner_operator_that_we_cannot_mark_leaves_the_outer_one(self, at_the_start):
        marking, caught = Marking(), []
        marking.context, marking.fails = 5, at_the_start

        def host():
            marking.fails = True
            return "result"

        inner = as_inner_operator(host, timer_of(marking), 2, LEAD, lambda error: caught.append(error) or True)
        assert inner() == "result"
        assert marking.context == 5
        assert len(caught) == 1 + at_the_start


class TestThreads:
    """While one thread's forward is measured, another one calls the same functions."""

    def test_another_threads_calls_mark_nothing(self, make):
        marking = Marking(thread=threading.get_ident() + 1)
        assert make(any_arguments, marking)(1, b=2) == ((1,), {"b": 2})
        assert (marking.marks, marking.context) == ([], -1)

    def test_a_threads_own_calls_are_marked(self):
        marking = Marking(thread=threading.get_ident())
        operator(any_arguments, marking)[0]()
        assert marking.marks == [LEAD, OWN]

    def test_a_collective_of_another_threads_is_not_measured(self):
        calls = []
        marking = Marking(thread=threading.get_ident())
        slot = handing_on(any_arguments, timer_of(marking), counted(calls))
        other = threading.Thread(target=slot, args=("other",))
        other.start()
        other.join()
        slot("own")
        assert calls == [(("own",), {})]
