"""A server is given the options that its LightLLM has, as its source says."""

import itertools
import os
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "deploy" / "demo"
sys.path.insert(0, str(DEMO))

import command_line  # noqa: E402

API = """
def make_argument_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--max_total_token_num", type=int, default=None)
    parser.add_argument("--disable_cudagraph", action="store_true")
    parser.add_argument("--nccl_port", type=int, default={nccl_port}, help="for --graph_max_batch_size")
    {more}
    return parser
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "server").mkdir()
    return tmp_path


def options(package: Path, nccl_port: str = "None", more: str = "pass") -> dict[str, object]:
    (package / command_line.API).write_text(API.format(nccl_port=nccl_port, more=more))
    return command_line.options_of(package)


def flags(known: dict[str, object], nccl_port: "int | None" = None, graphs: bool = False) -> str:
    return " ".join(command_line.flags("new", True, graphs, known, nccl_port, itertools.count(1).__next__))


def test_an_option_that_this_lightllm_does_not_have_is_left_out_with_its_value(package: Path) -> None:
    known = options(package)
    assert flags(known) == "--max_total_token_num 9000 --disable_cudagraph"
    assert flags(known, graphs=True) == "--max_total_token_num 9000"


def test_ports_are_given_where_they_would_clash(package: Path) -> None:
    visual = 'parser.add_argument("--visual_nccl_ports", nargs="+", type=int, default=[29500])'
    known = options(package, "28765", visual)
    assert not command_line.chooses_nccl_port(known)
    assert flags(known, 28800).endswith("--visual_nccl_ports 1 --nccl_port 28800")
    assert command_line.chooses_nccl_port(options(package))


def test_lightllm_0_0_1_keeps_its_own_options(package: Path) -> None:
    assert command_line.options_of(package) == {}
    words = command_line.flags("old", True, False, {}, 28800, lambda: 1)
    assert words[:2] == ["--nccl_port", "28800"]
    assert "--max_req_input_len" in words


@pytest.mark.skipif(not os.environ.get("LIGHTLLM_SRC"), reason="LIGHTLLM_SRC names no checkout of the current LightLLM")
def test_a_checkout_has_the_options_that_a_server_on_the_cpu_cannot_do_without() -> None:
    known = command_line.options_of(Path(os.environ["LIGHTLLM_SRC"], "lightllm"))
    needed = {
        "--max_total_token_num",
        "--max_req_total_len",
        "--chunked_prefill_size",
        "--disable_cudagraph",
        "--data_type",
    }
    assert needed <= known.keys()
