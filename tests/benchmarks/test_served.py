"""Real servers of one host: what is started, what is put together, and what an answer that differs looks like."""

import argparse
import contextlib
import http.server
import json
import threading
import types
from pathlib import Path

import accuracy
import fixed_batch
import model_servers
import overhead_claims
import pairing
import pytest
import served
import served_answers
from streams import Request, stream, together


class Generator(http.server.BaseHTTPRequestHandler):
    """/generate_stream as LightLLM answers it. ``fail``: a status instead."""

    fail = 0

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["parameters"]
        self.send_response(self.fail or 200)
        self.end_headers()
        for number in range(0 if self.fail else asked["max_new_tokens"]):
            line = json.dumps({"token": {"id": number + asked.get("seed", 0)}})
            try:
                self.wfile.write(f"data:{line}\n\n".encode())
            except OSError:
                return

    def log_message(self, *args):
        pass


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(Generator, "fail", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Generator)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


class TestStreams:
    def test_every_token_has_its_time_and_number(self, port):
        found = stream(port, Request("a", 4, {"seed": 10}))
        assert found.token_ids == (10, 11, 12, 13)
        assert found.arrivals == sorted(found.arrivals)
        assert len(found.arrivals) == 4
        assert found.problem == ""

    def test_a_client_that_leaves_is_no_problem_and_a_server_that_fails_is(self, port, monkeypatch):
        left = stream(port, Request("a", 50, leave_after=3))
        assert (len(left.token_ids), left.problem) == (3, "")
        monkeypatch.setattr(Generator, "fail", 503)
        assert "503" in stream(port, Request("a", 4)).problem

    def test_a_server_that_is_gone_is_a_problem_of_the_stream(self):
        assert "refused" in stream(1, Request("a", 4)).problem

    def test_requests_go_together_and_answers_come_in_their_order(self, port):
        found = together(port, [Request(str(number), 2, {"seed": number}) for number in range(5)])
        assert [each.token_ids[0] for each in found] == [0, 1, 2, 3, 4]


# Servers ---------------------------------------------------------------------------------------------------------------


def checkout(folder, flags):
    package = folder / "lightllm" / "server"
    package.mkdir(parents=True)
    lines = [f'parser.add_argument("{flag}")' for flag in flags]
    (package / "api_cli.py").write_text("\n".join(lines))
    return folder


def test_options_that_a_lightllm_does_not_have_are_left_out_with_their_values(tmp_path):
    source = checkout(tmp_path, ["--disable_vision", "--graph_max_batch_size"])
    words = [
        "--graph_max_batch_size",
        "64",
        "--llm_decode_att_backend",
        "triton",
        "--disable_vision",
        "--disable_audio",
    ]
    assert model_servers.known(words, source) == ["--graph_max_batch_size", "64", "--disable_vision"]


def arguments(**changes):
    words = {
        "shapes": ["llama-7b", "qwen3-8b"], "parts": ["overhead", "turns"], "graph_sizes": "1,20", "cpu": False,
        "tokens": 100, "graph_max_batch_size": 64, "word": ["--x"],
    }  # fmt: skip
    return argparse.Namespace(**{**words, **changes})


def test_every_shape_is_instrumented_and_the_first_one_stock_where_something_is_compared_with_it():
    names = [kind.name for kind in served.kinds(arguments())]
    assert names == ["llama-7b-stock", "llama-7b-instrumented", "qwen3-8b-instrumented"]
    assert [kind.name for kind in served.kinds(arguments(parts=["accuracy"]))] == names[1:]
    stock, instrumented, _ = served.kinds(arguments())
    assert not stock.environment
    assert instrumented.environment == {"LIGHTLLM_OTEL_GRAPH_BATCH_SIZES": "1,20"}
    assert not served.kinds(arguments(graph_sizes=""))[1].environment


def test_the_shapes_of_the_figures_can_be_written():
    from checkpoint import SHAPES, _config

    config = _config(SHAPES["qwen3-8b"], "float16")
    assert (config["model_type"], config["head_dim"], config["num_hidden_layers"]) == ("qwen3", 128, 36)
    assert _config(SHAPES["llama-7b"], "float16")["model_type"] == "llama"
    assert _config(SHAPES["qwen3-moe"], "float16")["model_type"] == "qwen3_moe"


def test_a_qwen3_checkpoint_has_the_norms_of_its_attention(tmp_path):
    from checkpoint import SHAPES, write
    from safetensors import safe_open

    folder = write(tmp_path / "qwen3", SHAPES["tiny-qwen3"], "float32")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.self_attn.q_norm.weight"
    with safe_open(folder / index[name], "pt") as tensors:
        assert tensors.get_tensor(name).shape == (32,)
    assert not any("expert" in name for name in index)


def test_checkpoints_lie_in_memory_where_there_is_room_and_else_on_the_disk(monkeypatch):
    assert served.weight_bytes(served.SHAPES["llama-7b"]) == pytest.approx(13.48e9, rel=0.01)
    assert served.weight_bytes(served.SHAPES["qwen3-8b"]) == pytest.approx(16.38e9, rel=0.01)
    free = {"/dev/shm": 100e9, "/tmp": 100e9}
    monkeypatch.setattr(served.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free[str(path)]))
    shapes = ["llama-7b", "qwen3-8b"]
    assert served.work_folder(shapes) == Path("/dev/shm/served")
    free["/dev/shm"] = 31e9
    assert served.work_folder(shapes) == Path("/tmp/served")
    free["/tmp"] = 10e9
    with pytest.raises(RuntimeError, match="no room for 30 GB"):
        served.work_folder(shapes)


def test_processes_that_speak_http_do_not_stand_still(monkeypatch):
    titles = {
        1: b"hypercorn\0--bind\0", 2: b"gunicorn: worker [app]\0", 3: b"lightllm::abc_0::api_server\0",
        4: b"python\0--port\x008100\0", 5: b"lightllm::abc_0::router_server\0", 6: b"lightllm::abc_0::model_infer:RANK0\0",
        7: b"python\0-m\0lightllm_otel\0exporter\0",
    }  # fmt: skip
    read = lambda self: titles[int(self.parts[2])]  # noqa: E731
    monkeypatch.setattr(Path, "read_bytes", read)
    assert [pid for pid in titles if not fixed_batch._speaks_http(pid, 8100)] == [5, 6]


def test_each_request_of_a_batch_has_its_own_parameters(monkeypatch):
    asked = []

    def generate(text, tokens, timeout, **parameters):
        asked.append((text[:3], parameters))
        return types.SimpleNamespace(token_ids=(1, 2))

    monkeypatch.setattr(fixed_batch, "QUEUE_SECONDS", 0.001)
    server = types.SimpleNamespace(generate=generate, processes=list, port=1)
    tokens, _ = fixed_batch.generate(server, 2, 6, 2, parameters=[{"seed": 1}, {}])
    assert tokens == [(1, 2), (1, 2)]
    assert [parameters for _, parameters in sorted(asked, key=lambda each: each[0])] == [{"seed": 1}, {}]


# Answers ---------------------------------------------------------------------------------------------------------------


class Fake:
    """A server whose tokens are ``base`` and what the request says; ``wrong``: the number of an answer that differs."""

    def __init__(self, base=0, wrong=-1):
        self.base, self.wrong, self.given = base, wrong, 0

    def answer(self, request):
        self.given += 1
        first = self.base + len(request.text) + request.parameters.get("seed", 0) + (self.given - 1 == self.wrong)
        return tuple(range(first, first + request.tokens))


@pytest.fixture
def answers(monkeypatch):
    def made(server, with_seed=True, streamed_differently=False):
        def generate(text, tokens, **parameters):
            return types.SimpleNamespace(token_ids=server.answer(Request(text, tokens, parameters)))

        def streaming(port, request):
            ids = server.answer(request)
            return types.SimpleNamespace(token_ids=ids[1:] if streamed_differently else ids, problem="")

        monkeypatch.setattr(served_answers, "stream", streaming)
        batch = lambda *words, parameters: ([server.answer(Request("ab", 3, each)) for each in parameters], 0.0)  # noqa: E731
        monkeypatch.setattr(fixed_batch, "generate", batch)
        return served_answers.Answers(types.SimpleNamespace(generate=generate, port=1), served_answers.TINY, with_seed)

    return made


class TestAnswers:
    def test_the_same_answers_are_the_same(self, answers):
        assert all(answers(Fake()).same_as(answers(Fake())).values())

    @pytest.mark.parametrize(("wrong", "where"), [(0, "alone"), (1, "streamed"), (12, "batches")])
    def test_one_answer_that_differs_is_told_with_its_kind(self, answers, wrong, where):
        same = answers(Fake(wrong=wrong)).same_as(answers(Fake()))
        assert not same[where]
        assert sum(not value for name, value in same.items() if name != "streamed_as_alone") == 1

    def test_a_stream_must_have_the_tokens_of_the_answer_in_one_piece(self, answers):
        same = answers(Fake(), streamed_differently=True).same_as(answers(Fake()))
        assert not same["streamed_as_alone"]

    def test_half_of_the_requests_are_sampled_where_there_are_seeds(self):
        found = served_answers.requests(served_answers.Amount(), True)
        assert [bool(request.parameters) for request in found] == [False] * 4 + [True] * 4
        assert len({request.parameters["seed"] for request in found[4:]}) == 4
        assert not any(request.parameters for request in served_answers.requests(served_answers.Amount(), False))

    def test_a_lightllm_without_seeds_is_told_from_its_source(self, tmp_path):
        path = tmp_path / "lightllm" / "server" / "core" / "objs"
        path.mkdir(parents=True)
        assert not served_answers.has_seed(tmp_path)
        (path / "sampling_params.py").write_text('_fields_ = [("seed", ctypes.c_int64)]')
        assert served_answers.has_seed(tmp_path)
        assert not served_answers.has_seed(None)

    def test_the_summary_says_what_differed_and_what_happened(self):
        about = {"host": "main", "shape": "tiny"}
        rows = [
            {"kind": "about", "host": "main"},
            {**about, "kind": "answers", "server": "stock again", "identical": True, "tokens_compared": 5, "problems": []},
            {**about, "kind": "answers", "server": "every_step", "identical": False, "tokens_compared": 5, "problems": ["x"]},
            {**about, "kind": "disturbed", "alive": True, "exporters_killed": 1, "exporter_is_back_after_seconds": 2.0,
             "problems": []},
            {**about, "kind": "control", "all_accepted": True},
            {**about, "kind": "ring", "errors": [0, 1], "dropped": {"overwritten": 0}},
        ]  # fmt: skip
        found = served_answers.summarise(rows)["main"]["tiny"]
        assert found["identical"] == {"stock again": True, "every_step": False}
        assert found["tokens_compared"] == 10
        assert (found["problems"], found["errors"], found["exporters_killed"]) == (["x"], 1, 1)


# Results ---------------------------------------------------------------------------------------------------------------


def cells(host, off=7000.0, on=7007.0):
    cell = pairing.Cell(0, 0, pairing.np.full(30, on * 1e-6), pairing.np.full(30, off * 1e-6))
    rows = pairing.cell_rows("steps", [cell, cell])
    return [{"part": "served", "host": host, "shape": "llama-7b", **row} for row in rows]


def test_every_row_has_its_host_and_what_was_measured_is_written_at_once(tmp_path):
    results = served.Results("main@87881ae7c", tmp_path)
    results.keep("overhead", [{"kind": "start", "shape": "llama-7b", "server": "x", "seconds": 60.0}])
    assert len(json.loads((tmp_path / "overhead-main.json").read_text())["rows"]) == 2
    results.summarise()
    content = json.loads((tmp_path / "overhead-main.json").read_text())
    assert {row["host"] for row in content["rows"]} == {"main@87881ae7c"}
    assert content["rows"][0]["kind"] == "about"
    assert content["summary"]["main@87881ae7c"]["llama-7b"]["start"]["x"]["seconds"] == 60.0


def test_a_part_that_fails_leaves_a_row_and_the_others_count(tmp_path, monkeypatch):
    done = []

    def fails(*given):
        raise ValueError("no such graph")

    def works(given, fleet, results, until):
        done.append(until(0.5) > 0)

    @contextlib.contextmanager
    def running(given, results):
        yield served.Fleet({})

    monkeypatch.setattr(served, "running", running)
    monkeypatch.setattr(served, "overhead", fails)
    monkeypatch.setattr(served, "order", works)
    results = served.Results("main", tmp_path)
    served.run(arguments(parts=["overhead", "order"], seconds=60.0, share={}, cpu=True), results)
    assert done == [True]
    problems = json.loads((tmp_path / "problems-main.json").read_text())["summary"]["problems"]
    assert "no such graph" in problems[0]


OLD = [{"part": "paired", "host": "fc72ffab", "kind": "hook", "hook_ns": 1.0}]


class TestMerging:
    def test_rows_of_served_hosts_stand_apart_in_the_costs(self):
        summary = overhead_claims.summarise([*OLD, *cells("main")])
        assert summary["hosts"]["main"]["llama-7b"]["steps"]["throughput_loss_percent"] == pytest.approx(0.1, abs=1e-3)
        assert {name: value for name, value in summary.items() if name != "hosts"} == overhead_claims.summarise(OLD)

    def test_of_each_host_the_last_file_counts_whatever_is_measured_now(self):
        files = [{"rows": [*OLD, *cells("main", on=7100.0), *cells("v1.1.0")]}, {"rows": cells("main")}]
        found = overhead_claims.together(files, ["paired"])
        assert [row for row in found if row["part"] == "paired"] == []
        by_host = overhead_claims.summarise(found)["hosts"]
        assert set(by_host) == {"main", "v1.1.0"}
        assert by_host["main"]["llama-7b"]["steps"]["on_us"] == 7007.0

    def test_the_file_with_the_figures_on_top_says_when_and_where(self):
        own, later = {"rows": OLD, "date": "a"}, {"rows": cells("main"), "date": "b"}
        assert [each["date"] for each in overhead_claims.served_first([own, later])] == ["b", "a"]
        assert [each["date"] for each in overhead_claims.served_first([later, own])] == ["b", "a"]

    def test_accuracy_of_hosts_stands_apart(self, tmp_path):
        def row(error, **host):
            return {"shape": "tiny", "batch": 1, "mode": "decode eager", "operator": "ffn", "error_us": error,
                    "error_percent": 1.0, "cupti_idle_percent": 0.0, **host}  # fmt: skip

        about = {"commit": "", "command": "", "gpu": {}, "software": {}}
        files = [
            {"rows": [{"merged": {"commit": "x"}}, row(1.0, host="fc72ffab")], "date": "a", **about},
            {"rows": [row(2.0, host="main")], "date": "b", **about},
        ]
        accuracy.merge(files, tmp_path)
        content = json.loads((tmp_path / "accuracy.json").read_text())
        assert content["date"] == "a"
        assert content["summary"]["eager"]["decode eager"]["median_error_us"] == 1.0
        assert content["summary"]["hosts"]["main"]["eager"]["decode eager"]["median_error_us"] == 2.0
        assert "hosts" not in accuracy.by_host(files[0]["rows"])
