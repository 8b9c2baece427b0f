"""Spans out of notes and rings, and what a receiver gets of them."""

import itertools
import json
import types

import pytest
import records

from lightllm_otel.exporter import notes_folder, traces
from lightllm_otel.exporter.exporter import Exporter
from lightllm_otel.exporter.otlp_sender import OtlpSender
from lightllm_otel.exporter.request_spans import Chunk, request_parts
from lightllm_otel.exporter.traces import END_PATIENCE, SPANS_PER_SECOND, STEP_PATIENCE, TraceBook
from lightllm_otel.otel_environment import OtelEnvironment, Sampler
from lightllm_otel.records import layout
from lightllm_otel.records.batch import RecordBatch
from lightllm_otel.records.folder import group_folder, ring_path
from lightllm_otel.records.notes import NotesWriter
from lightllm_otel.records.vocabulary import Mode, Operator, Phase, SpanDrop
from lightllm_otel.records.writer import RingWriter
from lightllm_otel.reduce.group import Group
from lightllm_otel.settings import Settings

S = 10**9
TRACE, OWN, PARENT = "0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7", "b7ad6b7169203331"
UNTRACED = Sampler(0.0)


def begin(number=8, trace=TRACE, span=OWN):
    return {"k": "b", "id": number, "t": trace, "s": span}


def end(number=8, at=(100, 101, 104, 107, 108), trace=TRACE, span=OWN, **changes):
    about = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "m",
        "gen_ai.provider.name": "lightllm",
    }
    note = {"k": "e", "id": number, "t": trace, "s": span, "p": PARENT, "ts": "v=1", "at": [each * S for each in at],
            "in": 30, "out": 4, "fin": ["length"], "err": "", "a": about}  # fmt: skip
    return {**note, **changes}


def ran(number, *entries, phase=Phase.DECODE, entered=102.0):
    return {"k": "s", "n": number, "w": entered, "p": phase.code, "r": [list(entry) for entry in entries]}


def step(number, *operators, **fields):
    fields = {"seconds": 1.0, "wall_time": 102.0, "idle_seconds": 0.5, **fields}
    return records.cells(records.step(number=number, operators=operators, **fields))


OPERATORS = (
    (Operator.GAP, 0.25),
    (Operator.ATTENTION, 0.25),
    (Operator.FFN, 0.125, layout.STARVED),
    (Operator.FFN, 0.25),
)


@pytest.fixture
def book():
    """``book(…)`` → a TraceBook of a group that knows itself; span ids count from 1."""

    def make(sampler=UNTRACED):
        group = Group()
        group.set_facts(0, {**records.FACTS, "start_latency": 5e-6})
        numbers = itertools.count(1)
        made = TraceBook(
            OtelEnvironment(traces=("x",), sampler=sampler), group, OtlpSender(), lambda size: next(numbers)
        )
        made.group, made.otlp_sender = group, made._otlp_sender
        made.take = types.MethodType(take, made)
        return made

    return make


def take(self, cells, now=0.0):
    batch = RecordBatch.of_cells(cells)
    self.group.add(0, batch)
    self.steps(batch, now)


class TestARequest:
    def test_has_contiguous_parts_that_add_up_to_it(self, book):
        made = book()
        made.take(step(3, (Operator.FFN, 0.25), phase=Phase.PREFILL, seconds=0.5))
        chunks = [ran(3, (8, 2, 20), phase=Phase.PREFILL), ran(4, (8, 22, 8), phase=Phase.PREFILL, entered=103.0)]
        made.notes([*chunks, begin(), end()], 0.0)
        whole, *parts = [span for span in made.settle(END_PATIENCE) if not span.name.startswith("lightllm.step")][:7]
        assert (whole.name, whole.server, whole.start, whole.end) == ("text_completion m", True, 100 * S, 108 * S)
        parts = [span for span in parts if span.parent == whole.context]
        assert [(span.name, span.start / S, span.end / S) for span in parts] == [
            ("lightllm.tokenise", 100, 101),
            ("lightllm.queue", 101, 102),
            ("lightllm.prefill", 102, 103),
            ("lightllm.prefill", 103, 104),
            ("lightllm.decode", 104, 107),
            ("lightllm.tail", 107, 108),
        ]
        assert sum(span.end - span.start for span in parts) == whole.end - whole.start
        assert parts[2].attributes == {
            "lightllm.step.number": 3, "lightllm.prefill.tokens": 20, "lightllm.gpu.duration": 0.5,
        }  # fmt: skip
        assert parts[3].attributes == {"lightllm.step.number": 4, "lightllm.prefill.tokens": 8}

    def test_continues_its_callers_trace(self, book):
        made = book()
        made.notes([begin(), end()], 0.0)
        whole, *parts = made.settle(END_PATIENCE)
        assert whole.context == traces.Context(int(TRACE, 16), int(OWN, 16), "v=1")
        assert whole.parent == traces.Context(int(TRACE, 16), int(PARENT, 16), "v=1")
        assert {(span.context.trace_id, span.parent) for span in parts} == {(int(TRACE, 16), whole.context)}
        assert len({span.context.span_id for span in parts}) == len(parts)

    def test_says_what_was_used_and_how_long_it_took(self, book):
        made = book()
        made.notes([begin(), ran(3, (8, 12, 18), phase=Phase.PREFILL), end()], 0.0)
        attributes = made.settle(END_PATIENCE)[0].attributes
        expected = {
            "gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 4, "gen_ai.usage.cache_read.input_tokens": 12,
            "gen_ai.response.finish_reasons": ("length",), "gen_ai.server.time_to_first_token": 4.0,
            "gen_ai.server.time_per_output_token": 1.0, "lightllm.request.id": "8", "gen_ai.provider.name": "lightllm",
        }  # fmt: skip
        assert expected.items() <= attributes.items()

    def test_that_failed_says_how_and_keeps_the_parts_that_it_reached(self, book):
        made = book()
        made.notes([end(None, at=(100, 0, 0, 0, 101), out=0, err="ValueError", p="", fin=[], **{"in": 0})], 0.0)
        whole, *parts = made.settle(END_PATIENCE)
        assert (whole.error, whole.attributes["error.type"], whole.parent) == ("ValueError", "ValueError", None)
        assert [(span.name, span.start, span.end) for span in parts] == [("lightllm.tokenise", 100 * S, 101 * S)]

    def test_of_one_token_has_no_decode(self):
        names = [name for name, *_ in request_parts([0, 1, 5, 5, 6], [Chunk(1, 2, 0, 7)], {})]
        assert names == ["tokenise", "queue", "prefill", "tail"]

    def test_whose_prompt_is_computed_again_later_has_the_first_time_as_its_prefill(self, book):
        """LightLLM pauses a request when memory is short, and computes its prompt and answer again."""
        made = book()
        again = ran(9, (8, 0, 33), phase=Phase.PREFILL, entered=105.0)
        made.notes([begin(), ran(3, (8, 0, 30), phase=Phase.PREFILL), again, end()], 0.0)
        spans = made.settle(END_PATIENCE)
        assert [span.attributes["lightllm.step.number"] for span in spans if span.name == "lightllm.prefill"] == [3]

    def test_with_several_answers_computes_its_prompt_once(self, book):
        made = book()
        made.notes([begin(), ran(3, (8, 4, 26), (8, 29, 1), phase=Phase.PREFILL), end()], 0.0)
        (chunk,) = [span for span in made.settle(END_PATIENCE) if span.name == "lightllm.prefill"]
        assert chunk.attributes["lightllm.prefill.tokens"] == 27

    def test_never_goes_backwards_whatever_the_clocks_say(self):
        parts = request_parts([100, 103, 102, 106, 105], [Chunk(1, 99, 0, 7)], {})
        assert all(first <= last for _, first, last, _ in parts)
        assert all(before[2] == after[1] for before, after in zip(parts, parts[1:]))
        assert (parts[0][1], parts[-1][2]) == (100, 105)

    def test_is_known_before_its_steps_in_whatever_order_notes_are_read(self, book):
        made = book()
        made.notes([ran(3, (8, 0, 30), phase=Phase.PREFILL), end(), begin()], 0.0)
        assert [span.name for span in made.settle(END_PATIENCE)].count("lightllm.prefill") == 1

    def test_of_a_former_server_with_the_same_number_is_another(self, book):
        made = book()
        made.notes([begin(span="1" * 16), ran(3, (8, 0, 30), phase=Phase.PREFILL), end()], 0.0)
        assert [span.name for span in made.settle(END_PATIENCE)].count("lightllm.prefill") == 0


class TestAStep:
    def test_is_linked_to_the_traced_requests_that_ran_in_it(self, book):
        made = book()
        made.notes([begin(8), begin(16, "1" * 32, "2" * 16)], 0.0)
        made.take(step(5, *OPERATORS, seconds=1.0))
        made.notes([ran(5, (8,), (16,), (24,))], 0.0)
        whole, *_ = made.settle(0.0)
        assert whole.name == "lightllm.step decode"
        assert whole.links == (
            traces.Context(int(TRACE, 16), int(OWN, 16)),
            traces.Context(int("1" * 32, 16), int("2" * 16, 16)),
        )
        assert whole.parent is None
        assert whole.context.trace_id != int(TRACE, 16)

    def test_has_its_operators_as_spans_and_their_sums_as_attributes(self, book):
        made = book()
        made.notes([begin()], 0.0)
        made.take(step(5, *OPERATORS))
        made.notes([ran(5, (8,))], 0.0)
        whole, *operators = made.settle(0.0)
        assert [(span.name, span.start / S, span.end / S) for span in operators] == [
            ("lightllm.operator attention", 102.25, 102.5),
            ("lightllm.operator ffn", 102.5, 102.625),
            ("lightllm.operator ffn", 102.625, 102.875),
        ]
        assert {span.parent for span in operators} == {whole.context}
        assert operators[1].attributes["lightllm.starved"] is True
        assert (whole.start, whole.end) == (102 * S, 103 * S)
        assert whole.attributes["lightllm.operator.ffn.duration"] == 0.375
        assert whole.attributes["lightllm.operator.gap.duration"] == 0.25
        assert whole.attributes["lightllm.clock.error"] == 5e-6

    def test_without_a_traced_request_has_attributes_alone_if_the_sampler_takes_it(self, book):
        for sampler, expected in ((Sampler(1.0), 1), (Sampler(0.0), 0)):
            made = book(sampler)
            made.take(step(5, *OPERATORS))
            made.notes([ran(5, (8,))], 0.0)
            spans = made.settle(0.0)
            assert len(spans) == expected
            assert all(span.links == () and "lightllm.operator.ffn.duration" in span.attributes for span in spans)

    def test_waits_for_who_ran_in_it_but_not_for_ever(self, book):
        made = book(Sampler(1.0))
        made.take(step(5, *OPERATORS))
        assert made.settle(0.1) == []
        made.notes([ran(5, (8,))], 0.2)
        assert len(made.settle(0.2)) == 1
        made.take(step(6, *OPERATORS), 1.0)
        assert made.settle(1.1 + STEP_PATIENCE) == []
        made.notes([ran(6, (8,))], 7.0)
        assert made.settle(7.0) == []

    def test_leaves_operators_out_and_counts_them_when_there_are_too_many(self, book):
        made = book()
        made.notes([begin()], 0.0)
        calls = [(Operator.FFN, 1e-4)] * 300
        for number in range(5):
            made.take(step(number, *calls))
            made.notes([ran(number, (8,))], 0.0)
        spans = made.settle(0.0)
        assert len(spans) == 3 * 301 + 2
        assert made.otlp_sender.dropped[SpanDrop.RATE] == 2 * 300
        assert len(spans) <= SPANS_PER_SECOND
        made.take(step(9, *calls), 1.0)
        made.notes([ran(9, (8,))], 1.0)
        assert len(made.settle(1.0)) == 301  # a second later there is room again

    def test_shows_itself_beside_the_buckets_that_it_was_counted_in(self, book):
        made = book()
        made.notes([begin()], 0.0)
        made.take(step(5, *OPERATORS))
        made.notes([ran(5, (8,))], 0.0)
        whole, *_ = made.settle(0.0)
        shown = [
            *made.group.steps.histograms[Phase.DECODE.code, Mode.EAGER.code].exemplars.values(),
            *made.group.operators.histograms[Operator.FFN.code, Phase.DECODE.code, Mode.EAGER.code].exemplars.values(),
        ]
        assert [exemplar.value for exemplar in shown] == [1.0, 0.25]  # the step; the longest of its calls
        assert {(each.trace_id, each.span_id) for each in shown} == {(whole.context.trace_id, whole.context.span_id)}
        for histogram in made.group.operators.histograms.values():
            assert all(histogram.counts[at] for at in histogram.exemplars)

    def test_of_a_rank_that_has_started_again_is_not_taken_for_an_old_one(self, book):
        made = book(Sampler(1.0))
        made.notes([ran(5, (8,))], 0.0)
        made.restarted()
        made.take(step(5, *OPERATORS))
        assert made.settle(0.1) == []


def test_what_is_kept_is_bounded(book, monkeypatch):
    monkeypatch.setattr(traces, "MOST_REQUESTS", 10)
    monkeypatch.setattr(traces, "MOST_STEPS", 10)
    monkeypatch.setattr(traces, "MOST_CHUNKS", 10)
    made = book()
    for number in range(100):
        made.notes([begin(8), begin(8 * number + 16), ran(number, (8, 0, 5), phase=Phase.PREFILL)], 0.0)
        made.take(step(number, phase=Phase.PREFILL))
    assert len(made._requests) == len(made._ran) == len(made._prefills) == 10


# Sent -----------------------------------------------------------------------------------------------------------------

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otlp-grpc is not installed")

from receiver import Receiver, attributes_of, closed_port  # noqa: E402


@pytest.fixture(params=["http/protobuf", "grpc"])
def receiver(request):
    made = Receiver(request.param)
    yield made
    made.close()


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def exporting(tmp_path, monkeypatch, now):
    """``exporting(receiver, **variables)`` → (exporter, ring, notes): a server's folder, and the exporter of it."""

    def make(receiver, **variables):
        environ = {**receiver.environ, "OTEL_METRICS_EXPORTER": "none", "OTEL_BSP_SCHEDULE_DELAY": "50", **variables}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        folder = group_folder(tmp_path, "127.0.0.1-28765-dp0")
        ring, notes = RingWriter(ring_path(folder, 0), 1), NotesWriter(folder / "http-1.notes")
        ring.describe({**records.FACTS, "start_latency": 5e-6})
        settings = Settings.from_env({"LIGHTLLM_OTEL_PORT": str(closed_port())})
        exporter = Exporter(folder, settings, lambda: now[0], otel_environment=OtelEnvironment.from_env(environ))
        return exporter, ring, notes

    return make


def one_request(ring, notes):
    notes.write(begin())
    notes.write(ran(0, (8, 12, 18), phase=Phase.PREFILL, entered=102.0))
    ring.write(*records.step(number=0, phase=Phase.PREFILL, seconds=0.5, wall_time=102.0))
    notes.write(ran(1, (8,)))
    ring.write(*records.step(number=1, operators=OPERATORS, seconds=1.0, wall_time=104.0, idle_seconds=0.5))
    notes.write(end())


def test_a_receiver_gets_the_request_and_its_steps(exporting, receiver, now):
    exporter, ring, notes = exporting(receiver)
    one_request(ring, notes)
    for now[0] in (0.0, 2.0):
        exporter.poll()
    spans = receiver.wait(lambda r: len(r.spans()) >= 10 and r.spans())
    by_name = {span.name: span for span in spans}
    request, step = by_name["text_completion m"], by_name["lightllm.step decode"]
    assert (request.trace_id.hex(), request.span_id.hex(), request.parent_span_id.hex()) == (TRACE, OWN, PARENT)
    assert (request.kind, request.trace_state) == (2, "v=1")  # a server's
    assert attributes_of(request)["gen_ai.response.finish_reasons"] == ["length"]
    assert by_name["lightllm.prefill"].parent_span_id == request.span_id
    (link,) = step.links
    assert (link.trace_id.hex(), link.span_id.hex()) == (TRACE, OWN)
    assert by_name["lightllm.operator attention"].parent_span_id == step.span_id
    said = attributes_of(receiver.traces[0].resource_spans[0].resource)
    assert (said["service.name"], said["lightllm.model"]) == ("lightllm", "llama-7b")
    # What the spans say of the step is what /metrics counted of it.
    histogram = exporter.group.steps.histograms[Phase.DECODE.code, Mode.EAGER.code]
    assert histogram.total == (step.end_time_unix_nano - step.start_time_unix_nano) / S
    exporter.close()


def test_a_failed_request_has_the_status_of_an_error(exporting, receiver, now):
    exporter, _, notes = exporting(receiver)
    notes.write(end(err="RuntimeError"))
    exporter.poll()
    exporter.close()  # the server ends: what has ended is sent
    (request,) = [span for span in receiver.wait(lambda r: r.spans()) if span.kind == 2]
    assert request.status.code == 2
    assert attributes_of(request)["error.type"] == "RuntimeError"


def test_batches_are_of_the_standard_variables_size(exporting, receiver, now):
    exporter, _, notes = exporting(receiver, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4", OTEL_BSP_SCHEDULE_DELAY="60000")
    for number in range(8, 32, 8):
        notes.write(end(number))
    for now[0] in (0.0, 2.0):
        exporter.poll()
    receiver.wait(lambda r: len(r.spans()) >= 12)
    assert [len(request.resource_spans[0].scope_spans[0].spans) for request in receiver.traces] == [4, 4, 4]


def test_notes_that_were_overwritten_are_counted(exporting, receiver, now):
    exporter, _, notes = exporting(receiver)
    exporter.poll()
    for _ in range(3):
        notes.write("x" * (200 << 10))
        notes.write("x" * (200 << 10))
    exporter.poll()
    assert exporter._collector.otlp_sender.dropped[SpanDrop.OVERWRITTEN] == 1


def test_files_of_processes_that_are_gone_are_read_and_removed(exporting, receiver, now, monkeypatch):
    exporter, _, notes = exporting(receiver)
    held = {notes.path}
    monkeypatch.setattr(notes_folder, "is_locked", lambda path: path in held)
    notes.write(end())
    for _ in range(notes_folder.READS_OF_THE_DEAD):
        exporter.poll()
    assert notes.path.exists()
    held.clear()
    notes.write(end(16))
    for _ in range(notes_folder.READS_OF_THE_DEAD):
        exporter.poll()
    assert not notes.path.exists()
    exporter.close()
    receiver.wait(lambda r: len([span for span in r.spans() if span.kind == 2]) == 2)


def test_a_file_that_holds_no_notes_is_named_and_the_others_are_read(exporting, receiver, now, caplog):
    exporter, _, notes = exporting(receiver)
    (notes.path.parent / "http-0.notes").write_text(json.dumps({}))
    notes.write(end())
    exporter.poll()
    exporter.close()
    assert receiver.wait(lambda r: r.spans())
    assert [record for record in caplog.records if "http-0.notes is not a notes file" in record.message]
