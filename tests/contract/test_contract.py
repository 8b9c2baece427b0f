"""Comparison of the table of contracts with LightLLM's source, on made-up trees with one misfit each."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import contract
import made_up
import pytest
from lightllm_source import origin, wrappers
from lightllm_source.rows import ABSENT, FITS, MISFIT, state_of

from lightllm_otel.contracts.table import JULY_2025, MAIN, VERSIONS, Field, Hook, lost, seen
from lightllm_otel.records.vocabulary import Feature

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = contract.Contract.of_plugin()
GRAPH = f"{made_up.BASEMODEL}.cuda_graph"
CAPTURE = Hook("capture", Feature.DECODE_GRAPHS, GRAPH, "CudaGraph._capture_decode", "capturing",
               (("decode_func", "infer_state"),), JULY_2025, MAIN, "no operator inside graphs")  # fmt: skip


def state(text, row=CAPTURE, **modules):
    found = state_of(made_up.tree(common__basemodel__cuda_graph=text, **modules), row)
    return found.state, found.why


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class CudaGraph:\n    def _capture_decode(self, decode_func, infer_state): ...", FITS),
        ("class CudaGraph:\n    def _capture_decode(self, infer_state, *, decode_func, more=1): ...", FITS),
        ("class CudaGraph:\n    async def _capture_decode(self, infer_state, decode_func): ...", FITS),
        ("class CudaGraph:\n    def _capture_decode(self, decode_func, state): ...", MISFIT),
        ("class CudaGraph:\n    def _capture_decode(self, *args, **kwargs): ...", MISFIT),
        ("class CudaGraph:\n    _capture_decode = 3", MISFIT),
        ("class CudaGraph:\n    @property\n    def _capture_decode(self): ...", MISFIT),
        ("class CudaGraph:\n    def capture(self, decode_func, infer_state): ...", ABSENT),
        ("class Graph:\n    def _capture_decode(self, decode_func, infer_state): ...", ABSENT),
        ("if True:\n    class CudaGraph:\n        def _capture_decode(self, decode_func, infer_state): ...", FITS),
        ("try:\n    import there\nexcept ImportError:\n"
         "    class CudaGraph:\n        def _capture_decode(s, decode_func, infer_state): ...", FITS),
        ("class A:\n    def _capture_decode(self, decode_func, infer_state): ...\nclass CudaGraph(A): ...", FITS),
        ("class A:\n    def _capture_decode(self, decode_func, infer_state): ...\n"
         "class CudaGraph(A):\n    def _capture_decode(self, state): ...", MISFIT),
        ("class CudaGraph:\n    @torch.no_grad()\n    def _capture_decode(self, decode_func, infer_state): ...", FITS),
        ("def timed(f):\n    @functools.wraps(f)\n    def inner(*args, **kwargs): ...\n    return inner\n"
         "class CudaGraph:\n    @timed\n    def _capture_decode(self, decode_func, infer_state): ...", FITS),
        ("def timed(f):\n    def inner(*args, **kwargs): ...\n    return inner\n"
         "class CudaGraph:\n    @timed\n    def _capture_decode(self, decode_func, infer_state): ...", MISFIT),
        ("import other\nclass CudaGraph:\n    @other.made\n    def _capture_decode(self, decode_func, infer_state): ...", MISFIT),
        ("class CudaGraph(:\n", ABSENT),
    ],
    ids=[
        "fits", "keyword-only and reordered", "async", "renamed", "stars", "a value", "a property", "method gone", "class gone",
        "conditional", "in a try", "inherited", "overridden", "known decorator", "decorator that wraps",
        "decorator that does not", "unknown decorator", "broken file",
    ],
)  # fmt: skip
def test_a_hook_is_seen_as_the_running_plugin_would_see_it(text, expected):
    found, why = state(text)
    assert (found, bool(why)) == (expected, expected != FITS)


def test_a_hook_is_found_through_imports_and_star_imports():
    base = "class Base:\n    def _capture_decode(self, decode_func, infer_state): ..."
    assert state("from .graphs import *\nclass CudaGraph(Base): ...", common__basemodel__graphs=base)[0] == FITS
    assert state("from lightllm.common.basemodel import graphs\nclass CudaGraph(graphs.Base): ...",
                 common__basemodel__graphs=base)[0] == FITS  # fmt: skip
    assert state("from .graphs import Base as CudaGraph", common__basemodel__graphs=base)[0] == FITS
    assert state("from lightllm.graphs import CudaGraph", graphs="from lightllm.graphs import CudaGraph")[0] == ABSENT


def test_a_file_that_cannot_be_parsed_is_said_to_be():
    assert "cannot be parsed" in state("class CudaGraph(:\n")[1]


def test_a_module_that_is_gone_is_said_to_be():
    found = state_of(made_up.tree(other="x = 1"), CAPTURE)
    assert (found.state, found.why) == (ABSENT, f"there is no {GRAPH}")


@pytest.mark.parametrize(
    ("text", "owner", "attributes", "expected"),
    [
        ("@dataclass\nclass A:\n    x: int\n    y: int = 1", "A", ("x", "y"), FITS),
        ("class A:\n    def f(self):\n        self.x, self.y = 1, 2", "A", ("x", "y", "f"), FITS),
        ("class B:\n    x = 1\nclass A(B):\n    def g(self): self.y = 2", "A", ("x", "y"), FITS),
        ("class A(Structure):\n    _fields_ = [('x', c_int), ('y', c_int)]", "A", ("x", "y"), FITS),
        ("class A:\n    x: int", "A", ("x", "y"), MISFIT),
        ("class A:\n    def f(self, x): ...", "A", ("x",), ABSENT),
        ("class A:\n    def f(self, x): ...", "A.f", ("x",), FITS),
        ("class A:\n    def f(self, z): ...", "A.f", ("x",), ABSENT),
        ("def x(): ...\nfrom .b import y", "", ("x",), FITS),
        ("parser.add_argument('--x', default=1)", "options", ("x",), FITS),
        ("parser.add_argument('--xy', default=1)", "options", ("x",), ABSENT),
        ("os.environ['X'] = '1'", "environment", ("X",), FITS),
    ],
)  # fmt: skip
def test_attributes_are_found_wherever_instances_get_them(text, owner, attributes, expected):
    field = Field("f", Feature.STEPS, "lightllm.a", owner, attributes, JULY_2025, MAIN, "lost")
    assert state_of(made_up.tree(a=text), field).state == expected


# Deleting rows --------------------------------------------------------------------------------------------------------

ROWS = [pytest.param(row, id=row.name) for row in PLUGIN.rows]


@pytest.fixture(scope="module")
def hosts():
    return {name: made_up.version(name, PLUGIN.rows) for name in VERSIONS}


def test_names_of_rows_are_their_own():
    assert len({row.name for row in PLUGIN.rows}) == len(PLUGIN.rows)


@pytest.mark.parametrize("name", VERSIONS)
def test_nothing_is_lost_where_the_rows_of_a_version_fit(name, hosts):
    verdict = contract.check(hosts[name], PLUGIN)
    place = VERSIONS.index(name)
    wanted = {row.name for row in PLUGIN.rows if VERSIONS.index(row.since) <= place <= VERSIONS.index(row.until)}
    assert wanted <= verdict.fitting
    assert dict(verdict.lost) == {}


@pytest.mark.parametrize("row", ROWS)
def test_deleting_a_row_loses_exactly_its_feature(row, hosts):
    """It is deleted for the newest version in which it fits. Nothing is lost if another row of its group replaces it."""
    verdict = contract.check(hosts[row.until], PLUGIN.without(row.name), whole=PLUGIN)
    group = row.group.partition("/")[0]
    wanted_together = "/" in row.group
    stands_in = group and not wanted_together and any(
        other.name in verdict.fitting and (other.feature, other.group) == (row.feature, row.group) for other in PLUGIN.rows
    )  # fmt: skip
    assert set(verdict.lost) == (set() if stands_in or not row.loses else {row.feature})


def test_rows_that_are_wanted_together_are_lost_together():
    groups = (("a", "g/new"), ("b", "g/new"), ("c", "g/old"))
    rows = [CAPTURE._replace(name=name, group=group) for name, group in groups]
    assert lost({"a", "b"}, rows) == {}
    assert lost({"c"}, rows) == {}
    assert list(lost({"a"}, rows)) == [Feature.DECODE_GRAPHS]


def test_a_feature_that_a_version_does_not_have_is_not_lost():
    verdict = contract.check(made_up.tree(common__basemodel__basemodel="class TpPartBaseModel: ..."), PLUGIN)
    assert Feature.PREFILL_GRAPHS not in verdict.lost
    assert Feature.STEPS in verdict.lost
    assert Feature.PREFILL_GRAPHS not in verdict.there


def test_seen_names_the_first_and_the_last_version():
    assert seen([CAPTURE]) == "fc72ffab to main"
    assert seen([CAPTURE._replace(until=JULY_2025)]) == "fc72ffab"
    assert seen([]) == "no version"


# Wrappers -------------------------------------------------------------------------------------------------------------

MAKER = """
def capturing(host, session):
    @functools.wraps(host)
    def _capture_decode({wrapper}): ...
    return _capture_decode
"""


@pytest.mark.parametrize(
    ("wrapper", "host", "why"),
    [
        ("self, *args, **kwargs", "self, a, *, b", ""),
        ("*args, **kwargs", "self, a, b", ""),
        ("self, a, b", "self, a, b", ""),
        ("self, a, b", "self, a", "it asks for b"),
        ("self, a", "self, a, b", "it has no place for b"),
        ("self, a, *args", "self, a, *, b", "it does not take b"),
        ("self, a, *args, **kwargs", "self, c, b", ""),
        ("self, a, *args, **kwargs", "self, named, b", "it calls a what the host calls named"),
        ("self, *args", "self, named", "it does not take named by name"),
    ],
)
def test_a_wrapper_that_takes_less_than_the_host_breaks_it(wrapper, host, why):
    text = f"class CudaGraph:\n    def _capture_decode({host}): ...\n    def f(self): self._capture_decode(named=1)"
    made = dataclasses.replace(PLUGIN, hooks=(CAPTURE._replace(reads=()),), fields=(),
                               wrappers=wrappers.of_sources({"hooks.py": MAKER.format(wrapper=wrapper)}))  # fmt: skip
    verdict = contract.check(made_up.tree(common__basemodel__cuda_graph=text), made)
    assert [row for row, _ in verdict.breaks] == (["capture"] if why else [])
    assert why in "".join(said for _, said in verdict.breaks)
    assert verdict.fails == bool(why)


def test_a_row_that_does_not_fit_gets_no_hook_and_breaks_nothing():
    text = "class CudaGraph:\n    def _capture_decode(self, state): ..."
    narrow = wrappers.of_sources({"hooks.py": MAKER.format(wrapper="self, decode_func, infer_state")})
    made = dataclasses.replace(PLUGIN, hooks=(CAPTURE,), fields=(), wrappers=narrow)
    tree = made_up.tree(common__basemodel__cuda_graph=text)
    assert contract.check(tree, made).breaks == ()
    assert contract.check(tree, dataclasses.replace(made, careful=False)).breaks != ()


def test_wrappers_are_found_through_makers_that_hand_the_host_on():
    source = """
def outer(host, session):
    if Arguments(host).names == ("self", "x"):
        return quick(host, session)
    return inner(host, session)

def quick(host, session):
    @functools.wraps(host)
    def f(self, x): ...

def inner(host, session):
    @functools.wraps(host)
    def f(*args, **kwargs): ...
"""
    found = wrappers.of_sources({"hooks.py": source})["outer"]
    assert sorted((each.parameters.names, each.exact) for each in found) == [
        (("args", "kwargs"), False),
        (("self", "x"), True),
    ]
    unguarded = wrappers.of_sources({"hooks.py": source.replace("Arguments(host).names", "mode")})["outer"]
    assert not any(each.exact for each in unguarded)


def test_the_wrapper_of_every_hook_is_found():
    assert PLUGIN.unseen == []


# The command ----------------------------------------------------------------------------------------------------------


def test_make_contract_needs_neither_torch_nor_an_import_of_lightllm(tmp_path):
    write(tmp_path, made_up.version(JULY_2025, PLUGIN.rows))
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['lightllm'] = None\n"
        f"sys.path.insert(0, {str(ROOT / 'benchmarks' / 'hosts')!r})\n"
        "import contract; sys.exit(contract.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "LIGHTLLM_SRC": str(tmp_path)},
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "start failures: 0, features lost: 0, wrong and not covered: 0" in done.stdout
    assert "not in this version: prefill_graphs" in done.stdout


def write(folder, tree):
    for path, text in tree.paths.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "lightllm" / "__init__.py").write_text("")


def test_the_status_is_1_where_figures_would_be_wrong(tmp_path, capsys):
    write(tmp_path, made_up.version(JULY_2025, PLUGIN.rows))
    (tmp_path / "lightllm/common/basemodel/new_graph.py").write_text(
        "class NewGraph:\n    def capture_decode(self): ...\n"
    )
    assert contract.main({"LIGHTLLM_SRC": str(tmp_path)}) == 1
    assert "NewGraph: capture_decode" in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["LIGHTLLM_SRC", "LIGHTLLM_CLONE"])
def test_a_folder_without_lightllm_gets_one_sentence(variable, tmp_path, capsys):
    assert contract.main({variable: str(tmp_path)}) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert str(tmp_path) in said.err


def test_no_lightllm_at_all_gets_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(origin, "installed", lambda: None)
    assert contract.main({}) == 2
    assert "set LIGHTLLM_SRC" in capsys.readouterr().err


def test_the_installed_version_is_held_against_the_table():
    folder = origin.installed()
    if folder is None:
        pytest.skip("LightLLM 0.0.1 is not installed here")
    assert contract.main({}) in (0, 1)
    verdict = contract.check(origin.of_folder(folder), PLUGIN)
    assert verdict.breaks == ()
    assert dict(verdict.lost) == {}
    assert verdict.fitting == {row.name for row in PLUGIN.rows if row.since == VERSIONS[0]}


@pytest.mark.skipif("LIGHTLLM_SRC" not in os.environ, reason="LIGHTLLM_SRC is not set")
def test_a_checkout_would_start_and_loses_nothing():
    verdict = contract.check(origin.of_folder(Path(os.environ["LIGHTLLM_SRC"])), PLUGIN)
    assert verdict.breaks == ()
    assert dict(verdict.lost) == {}


# The result ----------------------------------------------------------------------------------------------------------


def test_the_result_names_what_is_in_it():
    content = json.loads((ROOT / "benchmarks" / "results" / "hosts.json").read_text())
    assert content["summary"]["hosts_with_start_failures"] == 0
    named = [row["name"] for row in content["rows"] if "name" in row]
    assert {JULY_2025, "v1.1.0", "v1.2.0", MAIN} <= set(named)
