"""Requests in LightLLM's HTTP process, of 0.0.1 and since July 2025."""

import asyncio
import dataclasses
import gc
import types

import fake_host
import hooks
import pytest
from fake_host import HttpRequest, SamplingParams

from lightllm_otel.contracts.fits import Fits
from lightllm_otel.contracts.patch_set import PatchSet
from lightllm_otel.guard import Guard
from lightllm_otel.otel_environment import OtelEnvironment, Sampler
from lightllm_otel.records.notes import PATTERN, NotesReader
from lightllm_otel.records.vocabulary import Stage
from lightllm_otel.settings import Settings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
ON = OtelEnvironment(traces=("otlp_proto_http",), sampler=Sampler(0.0))  # only what a caller traces


@pytest.fixture(params=["old", "new"])
def http(request, tmp_path, host_untouched):
    """Return ``http(**options)`` → an HTTP process with hooks. ``.ask(…)`` returns a request's items, ``.notes()`` its notes."""
    made = []

    def start(otel_environment=ON, strict=True, submit=None):
        module = fake_host.make_http(request.param == "old", submit)
        for owner in (module, module.HttpServerManager, module.ReqStatus):
            host_untouched(owner)
        settings = dataclasses.replace(Settings.from_env({}), directory=tmp_path)
        session = types.SimpleNamespace(
            guard=Guard(strict),
            patch_set=PatchSet(),
            otel_environment=otel_environment,
            settings=settings,
            fits=Fits(),
            watches=None,
        )
        hooks.hook(session, httpserver__manager=module)
        side = Http(module, session, request.param == "old", tmp_path)
        made.append(side)
        return side

    yield start
    for side in made:
        side.session.patch_set.undo()


class Http:
    def __init__(self, module, session, old, directory):
        self.session, self.old, self.directory = session, old, directory
        self.manager = module.HttpServerManager()
        self._numbers = iter(range(8, 10**6, 8))

    def generate(self, prompt="hello", request=None, **options):
        number = options.pop("number", None)
        if self.old:
            arguments = (prompt, SamplingParams(), next(self._numbers) if number is None else number, None, request)
        else:
            arguments = (prompt, SamplingParams(), None, request)
        return self.manager.generate(*arguments, **options)

    def ask(self, *args, **options):
        async def collect():
            return [item[:3] async for item in self.generate(*args, **options)]

        return asyncio.run(collect())

    def notes(self):
        return [note for path in sorted(self.directory.rglob(PATTERN)) for note in NotesReader(path).read()]


def test_a_traced_request_is_noted_when_it_has_its_number_and_when_it_ends(http):
    side = http()
    side.ask(request=HttpRequest("/v1/chat/completions", **TRACED, tracestate="v=1"))
    begin, end = side.notes()
    assert (begin["k"], begin["id"], begin["t"]) == ("b", 8, TRACE)
    assert (end["k"], end["id"], end["t"], end["s"], end["p"], end["ts"]) == ("e", 8, TRACE, begin["s"], PARENT, "v=1")
    assert (end["in"], end["out"], end["fin"], end["err"]) == (5, 4, ["length"], "")
    assert end["at"] == sorted(end["at"])
    assert all(end["at"])


def test_a_request_is_described_by_the_conventions_and_without_its_words(http):
    side = http()
    side.ask("a secret of the caller's", HttpRequest("/v1/chat/completions", **TRACED))
    side.ask("another secret", HttpRequest("/generate_stream", **TRACED))
    notes = side.notes()
    chat, text = (note["a"] for note in notes if note["k"] == "e")
    assert chat == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "lightllm", "gen_ai.request.model": "fake",
        "url.path": "/v1/chat/completions", "server.address": "server.example", "server.port": 8080,
        "gen_ai.request.max_tokens": 4, "gen_ai.request.temperature": 1.0, "gen_ai.request.top_p": 1.0,
        "gen_ai.request.choice.count": 1,
    }  # fmt: skip
    assert text["gen_ai.operation.name"] == "text_completion"
    assert "secret" not in str(notes)
    assert "an answer" not in str(notes)


def test_a_request_that_is_not_traced_gets_lightllms_own_generator(http):
    side = http()
    assert type(side.generate(request=HttpRequest())).__name__ == "async_generator"
    assert type(side.generate()).__name__ == "async_generator"
    side.ask(request=HttpRequest(traceparent=f"00-{TRACE}-{PARENT}-00"))
    assert side.notes() == []


def test_health_checks_are_not_traced(http):
    side = http(dataclasses.replace(ON, sampler=Sampler(1.0)))
    if side.old:
        side.ask(request=HttpRequest(**TRACED), number=-8)
    else:
        side.ask(request=HttpRequest(**TRACED), is_health_req=True)
    assert side.notes() == []


def test_a_request_without_a_caller_gets_a_trace_of_its_own(http):
    side = http(dataclasses.replace(ON, sampler=Sampler(1.0)))
    side.ask()
    begin, end = side.notes()
    assert end["p"] == ""
    assert begin["t"] == end["t"] != TRACE


def test_items_and_their_order_are_lightllms(http):
    untraced = http().ask()
    side = http()
    assert side.ask(request=HttpRequest(**TRACED)) == untraced
    assert side.manager.log == [("began", "hello"), ("closed", 8)]


def test_lightllms_exception_is_the_callers_and_its_kind_the_traces(http):
    error = RuntimeError("a secret")
    side = http(submit=lambda *_: [None, error])
    with pytest.raises(RuntimeError) as caught:
        side.ask(request=HttpRequest(**TRACED))
    assert caught.value is error
    assert side.manager.log == [("began", "hello"), ("closed", 8)]
    _, end = side.notes()
    assert (end["err"], end["out"], end["fin"]) == ("RuntimeError", 1, [])
    assert "secret" not in str(end)


def test_a_prompt_that_is_refused_ends_its_trace(http):
    side = http()
    with pytest.raises(ValueError, match="too long"):
        side.ask("too long", HttpRequest(**TRACED))
    (end,) = side.notes()
    assert (end["id"], end["err"], end["at"][1:4]) == (None, "ValueError", [0, 0, 0])


def test_a_client_that_goes_away_ends_its_trace_once(http):
    side = http()

    async def leave():
        generator = side.generate(request=HttpRequest(**TRACED))
        await generator.__anext__()
        await generator.aclose()
        del generator
        gc.collect()

    asyncio.run(leave())
    assert [note["err"] for note in side.notes() if note["k"] == "e"] == ["GeneratorExit"]
    assert side.manager.log == [("began", "hello"), ("closed", 8)]


def test_a_generator_that_is_dropped_ends_its_trace(http):
    side = http()

    async def drop():
        generator = side.generate(request=HttpRequest(**TRACED))
        await generator.__anext__()
        del generator
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(drop())
    assert [note["err"] for note in side.notes() if note["k"] == "e"] == ["GeneratorExit"]


def test_a_cancelled_request_is_cancelled(http):
    side = http()

    async def cancel():
        async def ask():
            async for _ in side.generate(request=HttpRequest(**TRACED)):
                await asyncio.sleep(10)

        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    gc.collect()
    assert len([note for note in side.notes() if note["k"] == "e"]) == 1


def test_many_requests_at_once_keep_their_own_times_and_numbers(http):
    side = http()
    traces = [f"{number:032x}" for number in range(1, 21)]

    async def one(trace):
        async for _ in side.generate(request=HttpRequest(traceparent=f"00-{trace}-{PARENT}-01")):
            await asyncio.sleep(0)

    async def all_of_them():
        await asyncio.gather(*map(one, traces))

    asyncio.run(all_of_them())
    notes = side.notes()
    begins, ends = ({note["id"]: note["t"] for note in notes if note["k"] == kind} for kind in "be")
    assert begins == ends
    assert sorted(ends.values()) == traces


def test_a_failure_of_ours_ends_tracing_and_not_the_request(http, monkeypatch):
    side = http(strict=False)
    expected = http().ask()
    monkeypatch.setattr("lightllm_otel.records.notes.json.dumps", lambda *_, **__: 1 / 0)
    assert side.ask(request=HttpRequest(**TRACED)) == expected
    assert side.session.guard.errors[Stage.PATCH.code] == 1
    assert len(side.ask(request=HttpRequest(**TRACED))) == len(expected)
    assert side.session.guard.errors[Stage.PATCH.code] == 1  # it was the last attempt


def test_without_room_for_notes_requests_go_on_untraced(http, monkeypatch, caplog):
    side = http()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightllm_otel.records.notes.os.posix_fallocate", full)
    for _ in range(2):
        assert len(side.ask(request=HttpRequest(**TRACED))) == 4
    assert len([record for record in caplog.records if "requests are not traced" in record.message]) == 1


def test_nothing_is_patched_where_nobody_asks_for_traces(http):
    side = http(OtelEnvironment(metrics=("otlp_proto_http",)))
    assert side.session.patch_set.changes == 0


def test_each_tensor_parallel_group_learns_which_requests_are_traced(http, monkeypatch):
    monkeypatch.setattr(fake_host.HTTP_ARGS, "dp", 2)
    side = http()
    side.ask(request=HttpRequest(**TRACED))
    kinds = {
        path.parent.name: [note["k"] for note in NotesReader(path).read()] for path in side.directory.rglob(PATTERN)
    }
    assert kinds == {"127.0.0.1-8080-dp0": ["b", "e"], "127.0.0.1-8080-dp1": ["b"]}
