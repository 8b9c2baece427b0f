"""Tests of ``report`` and ``compare``, as a user and as a CI job call them."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import simulated

from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Operator, Phase
from lightllm_otel.roofline import shape
from lightllm_otel.tools import cli
from lightllm_otel.tools.analysis import expected
from lightllm_otel.tools.inputs import PACKAGED

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def runs(tmp_path):
    """Write three runs of five repeats: two equal ones, and one whose all_reduce takes 10 % longer."""
    kinds = {"a": {}, "again": {}, "slow": {"slower": {Operator.ALL_REDUCE: 1.1}}}
    return {
        name: str(simulated.write(tmp_path / name, seed, repeats=5, steps=30, run_noise=0.003, **options))
        for seed, (name, options) in enumerate(kinds.items())
    }


def one_sentence(capsys):
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert "Traceback" not in said.err
    return said.err


class TestReport:
    def test_a_person_gets_the_dearest_operator_first_with_its_interval(self, runs, capsys):
        assert cli.main(["report", runs["a"]]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "llama-7b on 1 × NVIDIA H200" in lines[0]
        assert "5 repeats" in lines[0]
        decode = lines[next(at for at, line in enumerate(lines) if line.startswith("decode · graph")) :]
        assert decode[2].split()[0] == "ffn"
        assert "…" in decode[2]
        assert "memory" in decode[2]

    def test_json_is_the_data_of_the_page(self, runs, capsys, tmp_path):
        assert cli.main(["report", runs["a"], "--json", "--html", str(tmp_path / "page.html")]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["kind"], data["repeats"]) == ("report", 5)
        embedded = (tmp_path / "page.html").read_text().split('id="data">')[1].split("</script>")[0]
        assert json.loads(embedded) == data

    def test_a_recording_of_the_package_is_found_by_its_name(self, capsys):
        assert cli.main(["report", "h200-llama-7b-tp1", "--model", "llama2-7b"]) == 0
        assert "MFU" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["nothing"], "there is no nothing; pass the folder of a recording"),
            (["h200-llama-7b-tp1", "--model", "gpt-5"], "model 'gpt-5' is not known"),
            (["h200-llama-tp2", "--model", "llama2-70b"], "with 8 layers, and llama2-70b has 80"),
            (["h200-llama-7b-tp1", "--gpu", "A1000"], "GPU 'A1000' is not known"),
            (["h200-llama-7b-tp1", "--html", "/no/such/folder/page.html"], "cannot be written"),
        ],
    )
    def test_what_cannot_be_done_is_one_sentence_and_status_1(self, capsys, words, said):
        assert cli.main(["report", *words]) == 1
        assert said in one_sentence(capsys)

    def test_an_empty_folder_and_a_file_are_one_sentence_each(self, capsys, tmp_path):
        assert cli.main(["report", str(tmp_path)]) == 1
        assert "is not a recording" in one_sentence(capsys)
        (tmp_path / "file").write_text("")
        assert cli.main(["report", str(tmp_path / "file")]) == 1
        assert "is not a folder" in one_sentence(capsys)


class TestCompare:
    def test_a_slower_operator_stands_under_the_step_with_its_verdict(self, runs, capsys):
        assert cli.main(["compare", runs["a"], runs["slow"]]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ") and "·" in line]
        (found,) = (row for row in rows if row[0] == "all_reduce" and row[1] == "decode")
        assert found[-1] == "slower"
        assert next(row[0] for row in rows if row[0] != "step") == "all_reduce"

    def test_several_runs_are_each_set_against_the_first(self, runs, capsys):
        assert cli.main(["compare", runs["a"], runs["again"], runs["slow"], "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert [each["second"]["name"] for each in data["comparisons"]] == ["again", "slow"]
        verdicts = [{row["verdict"] for row in each["rows"]} for each in data["comparisons"]]
        assert "slower" not in verdicts[0]
        assert "slower" in verdicts[1]
        assert {"change", "speed_up", "interval", "p", "detectable", "expected"} <= set(
            data["comparisons"][0]["rows"][0]
        )

    def test_a_gate_fails_with_a_status_of_its_own_and_says_why(self, runs, capsys):
        gate = ["--fail-if", "all_reduce:decode:+5%"]
        assert cli.main(["compare", runs["a"], runs["again"], *gate]) == 0
        assert cli.main(["compare", runs["a"], runs["slow"], *gate]) == 3
        assert "all_reduce:decode:+5% is met" in capsys.readouterr().err
        assert cli.main(["compare", runs["a"], runs["slow"], "--fail-if", "all_reduce:decode:+15%"]) == 0

    def test_an_operator_that_one_run_lacks_is_in_table_json_and_page_and_passes_no_condition(
        self, runs, capsys, tmp_path
    ):
        without = simulated.write(tmp_path / "without", 9, repeats=5, steps=30, slower={Operator.ALL_REDUCE: 0.0})
        words, page = ["compare", runs["a"], str(without)], tmp_path / "page.html"
        note = "decode · graph: all_reduce occurs only in a, "
        assert cli.main(words) == 0
        assert f"note: {note}" in capsys.readouterr().out
        assert cli.main([*words, "--json", "--html", str(page)]) == 0
        (comparison,) = json.loads(capsys.readouterr().out)["comparisons"]
        assert any(each.startswith(note) for each in comparison["notes"])
        assert "all_reduce occurs only in a, " in page.read_text()
        assert cli.main([*words, "--fail-if", "all_reduce:decode:+5%"]) == 1
        assert "cannot be judged" in one_sentence(capsys)

    def test_a_saved_baseline_stands_in_for_its_run(self, runs, capsys, tmp_path):
        kept = tmp_path / "kept.json"
        assert cli.main(["compare", runs["a"], "--save-baseline", str(kept)]) == 0
        assert capsys.readouterr().out.startswith(f"wrote {kept}, for comparisons, and for servers with")
        assert cli.main(["compare", str(kept), runs["slow"], "--fail-if", "all_reduce:decode:+5%"]) == 3

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["A"], "pass two runs or more"),
            (["A", "h200-llama-tp2"], "different models"),
            (["A", "A", "--fail-if", "all_reduce"], "write OPERATOR:PHASE:+PERCENT%"),
            (
                ["h200-llama-tp2", "h200-llama-tp2", "--fail-if", "ffn:decode:+5%"],
                "cannot be judged with so few repeats",
            ),
            (["A", "--save-baseline", "/no/such/folder/a.json"], "cannot be written"),
            (["A", "nothing"], "there is no nothing"),
            (["A", "--fail-if", "ffn:decode:+5%"], "--fail-if needs a second run"),
            (["A", "--fail-if", "ffn:decode:+5%", "--save-baseline", "a.json"], "--fail-if needs a second run"),
            (["A", "--html", "a.html", "--save-baseline", "a.json"], "--html needs a second run"),
            (["A", "--repeats", "--fail-if", "ffn:decode:+5%"], "remove --fail-if, or --repeats"),
            (
                ["A", "--repeats", "--save-baseline", "a.json", "--html", "a.html"],
                "remove --save-baseline and --html, or --repeats",
            ),
        ],
    )
    def test_what_cannot_be_compared_is_one_sentence_and_status_1(
        self, runs, capsys, words, said, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.iterdir())
        assert cli.main(["compare", *(runs["a"] if word == "A" else word for word in words)]) == 1
        assert said in one_sentence(capsys)
        assert sorted(tmp_path.iterdir()) == before


def failing(*_, **__):
    raise IndexError("index 0 is out of bounds")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("report.report_on", ["report", "h200-llama-tp2"]),
        ("compare.compare_sides", ["compare", "h200-llama-tp2", "h200-llama-tp2"]),
        ("theory.answer", ["theory", "--model", "llama2-7b", "--gpu", "H200"]),
        ("plan.plan_for", ["plan", "--model", "llama2-7b", "--machine", "H200:1:4"]),
    ],
)
def test_a_mistake_of_ours_is_never_shown_as_an_answer(monkeypatch, place, words):
    monkeypatch.setattr(f"lightllm_otel.tools.{place}", failing)
    with pytest.raises(IndexError):
        cli.main(words)


def overwrite_a_step(file):
    cells = np.fromfile(file, np.uint8).reshape(-1, layout.CELL_BYTES)
    starts, _ = layout.starts_in(cells)
    cells[starts[len(starts) // 2]] = 255
    cells.tofile(file)


class TestARecordingOfWhichAPartIsMissing:
    """Tests of incomplete recordings: the rest is shown, the exit status tells a script, and a gate does not pass."""

    DAMAGES = (
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), "ends in the middle of a step"),
        (overwrite_a_step, "is damaged at byte"),
        (lambda file: file.write_bytes(file.read_bytes()[:100]), "rank 0 has no steps"),
        (lambda file: file.unlink(), "rank 0 has no steps"),
    )  # fmt: skip

    @pytest.fixture(params=DAMAGES, ids=["torn", "damaged in the middle", "torn at once", "gone"])
    def damaged(self, request, tmp_path):
        damage, said = request.param
        path = shutil.copytree(PACKAGED / "h200-llama-tp2", tmp_path / "damaged")
        damage(path / "rank-0.records")
        return str(path), said

    def test_is_reported_with_a_sentence_and_a_status_of_its_own(self, damaged, capsys):
        path, said = damaged
        assert cli.main(["report", path]) == 4
        out, err = capsys.readouterr()
        assert "decode · " in out
        assert [said in line for line in err.splitlines() if line.startswith("lightllm-otel report: ")].count(True) == 1

    def test_passes_no_comparison(self, damaged, capsys):
        path, said = damaged
        whole = "h200-llama-tp2"
        for words in ([whole, path], [path, whole], [path, "--save-baseline", f"{path}.json"], [whole, f"{path}.json"]):
            assert cli.main(["compare", *words]) == 4, words
            assert said in capsys.readouterr().err

    def test_nor_a_gate_or_the_question_whether_repeats_agree(self, tmp_path, capsys):
        whole = [simulated.write(tmp_path / name, seed, repeats=3, steps=30) for seed, name in enumerate(("a", "b"))]
        words = ["compare", *map(str, whole), "--fail-if", "ffn:decode:+50%"]
        assert cli.main(words) == 0
        assert cli.main(["compare", "--repeats", str(whole[0])]) in (0, 3)
        agree = cli.main(["compare", "--repeats", str(whole[1])])
        file = next(whole[1].rglob("rank-0.records"))
        file.write_bytes(file.read_bytes()[:-20])
        assert cli.main(words) == 4
        assert cli.main(["compare", "--repeats", str(whole[1])]) == (agree or 4)


def test_ranks_that_share_a_gpu_are_held_against_no_link(capsys):
    assert cli.main(["report", "h200-llama-tp2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["facts"]["link"], data["machine"]["link"]) == ("same-gpu", None)
    assert any("the ranks share a GPU" in note for note in data["notes"])
    reduced = [row for phase in data["phases"] for row in phase["operators"] if row["operator"] == "all_reduce"]
    assert reduced
    assert all(row["bus_bytes_per_second"] and row["busy"] is None for row in reduced)


@pytest.mark.parametrize(
    ("matrix", "environment", "link"),
    [
        ([["X", "NV18"], ["NV18", "X"]], {}, "nvlink"),
        ([["X", "PHB"], ["SYS", "X"]], {}, "pcie"),
        ([["X", "NV18"], ["NV18", "X"]], {"NCCL_P2P_DISABLE": "1"}, "pcie"),
        ([["X", "NV4", "SYS"], ["NV4", "X", "SYS"], ["SYS", "SYS", "X"]], {}, None),
        ("none", {}, None),
    ],
)
def test_a_benchmark_knows_its_link(tmp_path, capsys, matrix, environment, link):
    path = shutil.copytree(PACKAGED / "h200-llama-tp2", tmp_path / "run")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["ranks"]["1"]["pci_bus_id"] = "00000000:00:07.0"
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "bench.json").write_text(json.dumps({"machine": {"links": matrix, "environment": environment}}))
    assert cli.main(["report", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["facts"].get("link") == link
    assert data["machine"]["link"]["kind"] == (link or "nvlink")
    assert cli.main(["compare", "h200-llama-tp2", str(path)]) == 0
    assert f"link: same-gpu against {link}" in capsys.readouterr().out


def test_theory_says_nothing_of_collectives_where_one_side_has_no_link():
    joined = {"gpu_name": "NVIDIA H200", "tp": 2, "link": "nvlink"}
    size = (20.0, 20.0, 20.0 * 1024)
    for second, known in (({**joined, "link": "pcie"}, True), ({**joined, "link": "same-gpu"}, False)):
        for one, other in ((joined, second), (second, joined)):
            found = expected.ratios(one, other, Phase.DECODE, size, shape.find("llama2-7b"))
            assert found["ffn"] == 1
            assert ("all_reduce" in found) == known


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
class TestInABrowser:
    def drawn(self, page, profile):
        """Return the document after its script has run. The options keep Chromium from contacting hosts of its vendor."""
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                 "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}")  # fmt: skip
        done = subprocess.run(
            [CHROMIUM, *quiet, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout.split('id="data"')[0]

    def test_every_picture_of_a_report_is_drawn(self, runs, tmp_path):
        page = tmp_path / "page.html"
        assert cli.main(["report", runs["a"], "--html", str(page)]) == 0
        drawn = self.drawn(page, tmp_path / "profile")
        for picture in ("Share of each operator", "One step", "Layers and operators", "Distribution of calls", "Roofline",
                        "Steps over time"):  # fmt: skip
            assert f'aria-label="{picture}"' in drawn
        assert "Hover to see values" in drawn  # the last thing that is drawn
        assert "NaN" not in drawn
        assert "undefined" not in drawn

    def test_a_comparison_is_drawn(self, runs, tmp_path):
        page = tmp_path / "page.html"
        assert cli.main(["compare", runs["a"], runs["again"], runs["slow"], "--html", str(page)]) == 0
        drawn = self.drawn(page, tmp_path / "profile")
        assert drawn.count('aria-label="Change of each operator"') == 2
        assert "Hover to see values" in drawn
        assert "NaN" not in drawn


def test_a_run_of_another_model_is_set_beside_no_theory(capsys):
    assert cli.main(["theory", "--run", "h200-llama-7b-tp1", "--model", "llama2-70b"]) == 1
    assert "with 32 layers, and llama2-70b has 80; pass the model of the run" in capsys.readouterr().err


def test_a_run_of_another_model_is_no_measure_of_a_gpu(capsys):
    words = ["plan", "--model", "llama2-70b", "--machine", "H200:8:20", "--run", "h200-llama-7b-tp1", "--json"]
    assert cli.main(words) == 0
    data = json.loads(capsys.readouterr().out)
    assert "says nothing here: it is of llama-7b with 32 layers" in data["notes"][0]
    assert not any(choice["measured"] for choice in data["choices"])


def test_a_file_that_is_a_folder_is_one_sentence(tmp_path, capsys):
    source = PACKAGED / "h200-llama-7b-tp1"
    (tmp_path / "manifest.json").write_text((source / "manifest.json").read_text())
    (tmp_path / "rank-0.records").mkdir()
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "rank-0.records cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "-5"])
def test_a_port_that_is_none_is_one_sentence(port, capsys, caplog):
    assert cli.main(["demo", "--port", port, "--seconds", "0"]) == 1
