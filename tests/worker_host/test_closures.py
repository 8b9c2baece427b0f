"""Wrappers of LightLLM's functions: they pass all arguments on, and record boundaries while a forward is measured."""

import functools
import inspect
import threading
import types

import pytest

from lightllm_otel.worker.host.closures import as_inner_operator, as_operator, handing_on

OWN, LEAD, BETWEEN, PART = 1, 7, 9, 100  # PART: what a piece of an operator adds to its code


class BoundaryRecorder:
    """Recorder that writes its calls down."""

    def __init__(self, pairs=False, thread=None):
        self.pairs, self.context, self.codes, self.fails, self.in_collective = pairs, -1, [0], False, False
        if thread is not None:
            self.thread = thread

    @property
    def boundary_codes(self):
        return self.codes[1:]

    def record(self, code):
        if self.fails:
            raise RuntimeError("cudaErrorIllegalAddress")
        self.codes.append(code)


def timer_of(recorder):
    return types.SimpleNamespace(recorder=recorder, boundary_codes=types.SimpleNamespace(part=lambda code: code + PART))


def operator(host, recorder, lead=LEAD, swallow=True, **options):
    """Return ``host`` as an operator, and the list of the plugin's errors that were caught."""
    caught = []
    hook = as_operator(
        host, timer_of(recorder), OWN, lead, BETWEEN, lambda error: caught.append(error) or swallow, **options
    )
    return hook, caught


def counted(calls):
    def measured(host, recorder, args, kwargs):
        calls.append((args, kwargs))
        return host(*args, **kwargs)

    return measured


def sums(a, b, out=None, *, scale=1):
    """Its own words."""
    return (a + b) * scale, out


def any_arguments(*args, **kwargs):
    return args, kwargs


MAKERS = {
    "operator": lambda host, recorder: operator(host, recorder)[0],
    "inner operator": lambda host, recorder: as_inner_operator(host, timer_of(recorder), OWN, LEAD, lambda error: True),
    "handing on": lambda host, recorder: handing_on(host, timer_of(recorder), counted([])),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


class TestCalls:
    @pytest.mark.parametrize("recording", [False, True])
    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [
            ((), {}),
            ((1, 2), {}),
            ((1,), {"b": 2}),
            ((), {"host": 1, "timer": 2, "recorder": 3, "self": 4, "args": 5, "kwargs": 6}),
        ],
    )
    def test_arguments_arrive_as_they_were_given(self, make, recording, args, kwargs):
        assert make(any_arguments, BoundaryRecorder() if recording else None)(*args, **kwargs) == (args, kwargs)

    @pytest.mark.parametrize("recording", [False, True])
    def test_wrong_arguments_are_the_hosts_to_refuse(self, make, recording):
        slot = make(sums, BoundaryRecorder() if recording else None)
        with pytest.raises(TypeError, match=r"sums\(\) missing 1 required positional argument: 'b'"):
            slot(1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
            slot(1, 2, other=3)

    def test_objects_are_the_hosts_own(self, make):
        marker = object()
        assert make(lambda value=marker: value, None)() is marker
        assert make(lambda value: value, BoundaryRecorder())(marker) is marker

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
        for recorder in (None, BoundaryRecorder()):
            assert make(host, recorder)(*arguments) == host(*arguments)

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
        ("lead", "pairs", "boundary_codes"),
        [(LEAD, False, [LEAD, OWN]), (None, False, [OWN]), (LEAD, True, [BETWEEN, OWN]), (None, True, [BETWEEN, OWN])],
    )
    def test_an_operator_records_what_leads_to_it_and_its_end(self, lead, pairs, boundary_codes):
        recorder = BoundaryRecorder(pairs)
        hook, _ = operator(lambda value: (value, recorder.context), recorder, lead)
        assert hook(3) == (3, OWN)  # while it runs it is what collectives are cut out of
        assert (recorder.boundary_codes, recorder.context) == (boundary_codes, -1)

    def test_an_operator_inside_another_is_part_of_it(self):
        recorder = BoundaryRecorder()
        recorder.context = 5
        hook, _ = operator(lambda value: value, recorder)
        assert (hook(3), recorder.boundary_codes, recorder.context) == (3, [], 5)

    def test_an_operator_passes_the_hosts_exception_on_and_ends_all_the_same(self):
        def broken(value):
            raise KeyError(value)

        recorder = BoundaryRecorder()
        hook, caught = operator(broken, recorder)
        with pytest.raises(KeyError, match="3"):
            hook(3)
        assert (recorder.boundary_codes, recorder.context, caught) == ([LEAD, OWN], -1, [])

    @pytest.mark.parametrize("swallow", [True, False])
    def test_an_operator_calls_its_host_once_whatever_recording_does(self, swallow):
        calls, recorder = [], BoundaryRecorder()
        recorder.fails = True
        hook, caught = operator(lambda value: calls.append(value) or "result", recorder, swallow=swallow)
        if swallow:
            assert (hook(3), calls, len(caught), recorder.context) == ("result", [3], 2, -1)
        else:  # tests see our errors
            with pytest.raises(RuntimeError):
                hook(3)

    def test_a_call_that_returns_its_argument_has_launched_nothing(self):
        recorder, tensor = BoundaryRecorder(), object()
        hook, _ = operator(lambda value, other=None: other or value, recorder, unless_returned=True)
        hook(tensor)
        hook(tensor, other=tensor)
        assert recorder.boundary_codes == [LEAD, LEAD]  # what came before it has ended all the same
        hook(tensor, other=[])
        assert recorder.boundary_codes[2:] == [LEAD]
        assert operator(lambda value: object(), recorder, unless_returned=True)[0](tensor) is not tensor
        assert recorder.boundary_codes[3:] == [LEAD, OWN]

    def test_a_call_that_could_return_its_argument_is_recorded_when_it_raises(self):
        recorder = BoundaryRecorder()
        hook, _ = operator(any_arguments, recorder, unless_returned=True)
        broken, _ = operator(lambda: 1 / 0, recorder, unless_returned=True)
        with pytest.raises(ZeroDivisionError):
            broken()
        assert recorder.boundary_codes == [LEAD, OWN]
        assert hook(1) == ((1,), {})

    def test_an_operator_that_has_begun_is_not_begun_again(self):
        recorder = BoundaryRecorder()
        hook, _ = operator(any_arguments, recorder, begun=(LEAD, OWN + PART))
        recorder.record(LEAD)
        hook()
        recorder.record(OWN + PART)
        hook()
        assert recorder.boundary_codes == [LEAD, OWN, OWN + PART, OWN]

    def test_an_operator_inside_another_can_be_cut_out_of_it(self):
        recorder = BoundaryRecorder()
        inner = as_inner_operator(lambda: recorder.context, timer_of(recorder), 2, LEAD, lambda error: False)
        outer, _ = operator(lambda: (inner(), recorder.context), recorder, lead=None)
        assert outer() == (2, OWN)
        assert recorder.boundary_codes == [OWN + PART, 2, OWN]
        assert inner() == 2
        assert recorder.boundary_codes[3:] == [LEAD, 2]

    @pytest.mark.parametrize("at_the_start", [True, False])
    def test_an_inner_operator_that_we_cannot_mark_leaves_the_outer_one(self, at_the_start):
        recorder, caught = BoundaryRecorder(), []
        recorder.context, recorder.fails = 5, at_the_start

        def host():
            recorder.fails = True
            return "result"

        inner = as_inner_operator(host, timer_of(recorder), 2, LEAD, lambda error: caught.append(error) or True)
        assert inner() == "result"
        assert recorder.context == 5
        assert len(caught) == 1 + at_the_start


class TestThreads:
    """While one thread's forward is measured, another one calls the same functions."""

    def test_another_threads_calls_mark_nothing(self, make):
        recorder = BoundaryRecorder(thread=threading.get_ident() + 1)
        assert make(any_arguments, recorder)(1, b=2) == ((1,), {"b": 2})
        assert (recorder.boundary_codes, recorder.context) == ([], -1)

    def test_a_threads_own_calls_are_recorded(self):
        recorder = BoundaryRecorder(thread=threading.get_ident())
        operator(any_arguments, recorder)[0]()
        assert recorder.boundary_codes == [LEAD, OWN]

    def test_a_collective_of_another_threads_is_not_measured(self):
        calls = []
        recorder = BoundaryRecorder(thread=threading.get_ident())
        slot = handing_on(any_arguments, timer_of(recorder), counted(calls))
        other = threading.Thread(target=slot, args=("other",))
        other.start()
        other.join()
        slot("own")
        assert calls == [(("own",), {})]
