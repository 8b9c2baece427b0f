"""The checker on LightLLM's own history (LIGHTLLM_CLONE), and on a made-up history."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import contract
import hosts
import made_up
import pytest
from lightllm_source import origin
from version1 import VERSION1

from lightllm_otel.contracts.table import JULY_2025, MAIN, V1_1, V1_2, VERSIONS

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = contract.Contract.of_plugin()
# Where LightLLM went past version 1's assumptions, and what of it came with that commit.
BOUNDARIES = (
    ("538487aab", "2025-07-21", ("decode_without_tokens: prepare_decode_inputs", "work_after_sample: ")),
    ("ef280981b", "2025-12-18", ("graph_without_hook: PrefillCudaGraph", "piece_of_graph: lightllm.common.basemodel")),
    ("4b70b7a81", "2026-01-04", ("breaks graph_capture", "breaks graph_replay", "lost decode_graphs", "lost microbatches",
                                 "work_outside_slots: Gemma3TransformerLayerInfer")),
    ("a8e6a3664", "2026-01-21", ("back_reference: BaseDecodeAttState", "operators_without_slot: kv_write: every class",
                                 "work_outside_slots: TransformerLayerInferTpl._post_cache_kv")),
    ("e756ee667", "2026-01-28", ("port_changes: ",)),
    ("9383c21bb", "2026-03-31", ("work_outside_slots: Qwen3NextTransformerLayerInfer.gdn_forward: "
                                 "layer_weight.linear_in_proj.mm as all_reduce",)),
    ("bbc9ebaf4", "2026-04-15", ("work_between_layers: TpPartBaseModel._token_forward: the last add_ as all_reduce",)),
    ("28254a9e4", "2026-05-07", ("absent exchange", "transport_not_told: flashinfer_reduce",
                                 "transport_not_told: symm_mem_reduce")),
    ("1b38e8d4e", "2026-05-22", ("work_outside_slots: Gemma4TransformerLayerInfer._block_epilogue",)),
    ("eaa3b281e", "2026-05-22", ("mixed_batches: b_is_decode_req",)),
    ("8cbb20a85", "2026-07-23", ("port_unknown: ",)),
)  # fmt: skip


def words(verdict):
    """Return all faults of a version as words."""
    said = {f"breaks {name}" for name, _ in verdict.breaks}
    said |= {f"lost {feature.value}" for feature in verdict.lost}
    said |= {f"{each.state} {each.row.name}" for each in verdict.states if each.state != "fits"}
    return said | {f"{each.rule}: {each.place}" for each in verdict.findings if not each.known}


@pytest.fixture(scope="module")
def clone():
    if "LIGHTLLM_CLONE" not in os.environ:
        pytest.skip("LIGHTLLM_CLONE is not set")
    made = origin.Clone(Path(os.environ["LIGHTLLM_CLONE"]))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("commit", "date", "broken"), BOUNDARIES, ids=[f"{date}-{commit}" for commit, date, _ in BOUNDARIES]
)
def test_version_1_is_found_broken_where_it_was(commit, date, broken, clone):
    at = clone.commit(commit)
    assert at.date == date
    after, before = (words(contract.check(clone.tree(each), VERSION1)) for each in (at, clone.commit(f"{commit}^")))
    for word in broken:
        assert any(each.startswith(word) for each in after - before), (word, sorted(after - before))


def test_version_1_was_right_about_july_2025(clone):
    verdict = contract.check(clone.tree(clone.commit(JULY_2025)), VERSION1)
    assert (verdict.breaks, dict(verdict.lost), [each for each in verdict.findings if not each.known]) == ((), {}, [])


@pytest.mark.parametrize("name", [JULY_2025, V1_1, V1_2, MAIN])
def test_rows_fit_in_the_versions_that_they_name(name, clone):
    verdict = contract.check(clone.tree(clone.commit(name)), PLUGIN)
    place = VERSIONS.index(name)
    wanted = {row.name for row in PLUGIN.rows if VERSIONS.index(row.since) <= place <= VERSIONS.index(row.until)}
    assert verdict.fitting == wanted
    assert verdict.breaks == ()
    assert dict(verdict.lost) == {}


# A history that is made up --------------------------------------------------------------------------------------------


def git(folder, *words):
    who = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def history(tmp_path, monkeypatch):
    """Return four commits: one that fits, one that changes a text, one that loses decode graphs, and one on a branch."""
    git(tmp_path, "init", "-q")
    for path, text in made_up.version(JULY_2025, PLUGIN.rows).paths.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    graph = tmp_path / "lightllm/common/basemodel/cuda_graph.py"

    def commit(subject):
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", subject)

    commit("all fits")
    git(tmp_path, "tag", "first")
    (tmp_path / "README.md").write_text("words")
    commit("words")
    graph.write_text(graph.read_text().replace("infer_state", "state"))
    commit("graphs take another argument")
    git(tmp_path, "tag", "second")
    git(tmp_path, "checkout", "-q", "-b", "aside")
    commit("aside")
    git(tmp_path, "checkout", "-q", "main")
    for name, value in (("JULY_2025", "first"), ("TAGS", ("first", "second")), ("BRANCHES", ("aside",)),
                        ("VERSIONS", {"v1": "first", "v2": "second"})):  # fmt: skip
        monkeypatch.setattr(hosts, name, value)
    monkeypatch.setattr(origin, "installed", lambda: None)
    return tmp_path


def test_every_commit_tag_and_branch_has_a_row(history, monkeypatch):
    checked = []
    monkeypatch.setattr(hosts, "check", lambda *given: checked.append(1) or contract.check(*given))
    clone = origin.Clone(history)
    looked = list(hosts.look(clone, PLUGIN))
    clone.close()
    findings = hosts.Findings()
    rows = [hosts.row(host, verdict, findings) for host, verdict in looked]
    assert [row.get("name") for row in rows] == ["first", None, "second, main", "aside"]
    assert ["lost" in row for row in rows] == [False, False, True, True]
    assert list(rows[2]["lost"]) == ["decode_graphs", "microbatches"]
    assert len(checked) == 2  # what is like its predecessor is not checked again


def test_the_result_is_written_and_read_for_the_table(history, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hosts.sys, "argv", ["hosts.py", str(history), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(hosts, "MAIN", "main")
    assert hosts.main() == 0
    content = json.loads((tmp_path / "out" / "hosts.json").read_text())
    found = content["summary"]
    assert (found["hosts"], found["hosts_with_start_failures"], found["hosts_with_lost_features"]) == (4, 0, 2)
    assert found["versions"]["v1"]["features"]["decode_graphs"] == "measured"
    assert found["versions"]["v2"]["features"]["decode_graphs"] == "lost"
    assert len(found["tip"]) == 40
    table = generated(monkeypatch, content)
    cells = {
        line.split("|")[1].strip(): [each.strip() for each in line.split("|")[2:-1]] for line in table.splitlines()
    }
    assert cells["operators inside decode graphs"] == ["yes", "**no**"]
    assert cells["prefill graphs"] == ["–", "–"]
    assert cells["two microbatches at once"] == ["whole steps", "**no**"]


def generated(monkeypatch, content):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("docs_version_tables", ROOT / "docs" / "version_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "result", lambda name: content)
    return module.versions()


def test_what_is_not_a_clone_gets_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hosts.sys, "argv", ["hosts.py", str(tmp_path)])
    assert hosts.main() == 2
    assert (
        capsys.readouterr().err
        == f"hosts.py: {tmp_path} is not a clone of LightLLM: give the folder of a git repository\n"
    )


@pytest.mark.parametrize(("found", "text"), [([], ""), ([3], "3"), ([1, 2, 3, 7], "1-3, 7")])
def test_numbers_of_findings_are_short(found, text):
    findings = hosts.Findings()
    for number in range(8):
        findings.number("rule", str(number))
    given = [contract.Finding("rule", "kind", str(number)) for number in found]
    assert hosts.numbers(findings, given) == text
