"""The page on the original analysis says what `lightllm-otel theory` says."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("original_analysis", ROOT / "docs" / "original_analysis.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_tables_are_current(generator):
    """Else run: python docs/original_analysis.py"""
    text = generator.PAGE.read_text()
    assert generator.fill(text) == text


def test_every_table_is_there_once(generator):
    names = re.findall(r"<!-- theory: (\w+) -->", generator.PAGE.read_text())
    assert sorted(names) == sorted(generator.BLOCKS)


def test_what_the_text_says_of_the_tables_holds(generator):
    text = generator.PAGE.read_text()
    tables = {
        name: re.search(rf"<!-- theory: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)[1] for name in generator.BLOCKS
    }
    assert "| FLOP/s | 2.08 |" in tables["ratios"]
    assert "| memory bandwidth | 2.23 |" in tables["ratios"]
    assert "| NVLink of a card | 5.33 |" in tables["ratios"]
    assert "| as the original has it | 8 bsh² | 16 bsh² | 2 |" in tables["flops"]
    assert re.findall(r": (compute|memory)", tables["bounds"]) == ["compute", "memory"] * 3
    not_bandwidth = [int(share) for share in re.findall(r"(\d+) % \|", tables["latency"])]
    assert min(not_bandwidth) > 50, "most of a call is latency"
    prefill, decode = (float(ratio) for ratio in re.findall(r"([\d.]+) \|$", tables["link_of_two"], re.MULTILINE))
    assert decode < prefill == 1.76


def test_what_was_not_measured_says_so(generator, tmp_path):
    text = generator.fill(generator.PAGE.read_text(), tmp_path)
    assert "What is not here yet: our own measurements." in text
    assert text.count("Not measured yet: `benchmarks/collectives/links.py`.") == 1
    assert text.count("Not measured yet: `benchmarks/collectives/scaling.py`.") == 1
    names = re.findall(r"<!-- measured: (\w+) -->", text)
    assert sorted(names) == sorted(generator.MEASURED)


def composed(benchmark, summary):
    return json.dumps({"benchmark": benchmark, "date": "2026-01-01", "commit": "0123456789", "summary": summary,
                       "gpu": {"count": 2, "name": "NVIDIA H100"}})  # fmt: skip


def test_links_that_were_measured_stand_beside_the_original_and_theory(generator, tmp_path):
    def variant(prefill, decode):
        return {
            phase: {
                "payload_bytes": payload,
                "transfer_us": micros,
                "bus_bytes_per_second": 1e11,
                "all_reduce_percent": 12.5,
            }
            for phase, payload, micros in (("prefill", 1 << 29, prefill), ("decode", 1 << 19, decode))
        }

    summary = {
        "variants": {"nccl_nvlink": variant(1000.0, 20.0), "nccl_pcie": variant(9000.0, 40.0), "custom": {"available": False}},
        "speedup": {
            "prefill": {"measured": 9.0, "theory": 7.1, "payload_bytes": 1 << 29},
            "decode": {"measured": 2.0, "theory": 1.6, "payload_bytes": 1 << 19}, "theory_from": "tables",
        },
        "topology": {"link": "nvlink4x18", "nvlink_bytes_per_second": 900e9, "pcie_bytes_per_second": 126e9}, "one_gpu": False,
    }  # fmt: skip
    (tmp_path / "links.json").write_text(composed("links", summary))
    text = generator.fill(generator.PAGE.read_text(), tmp_path)
    assert "| prefill | 537 MB | 1000 µs · 9000 µs | **9** | 7.1 | 100 · 100 | 12.5 · 12.5 |" in text
    assert "Prefill gains 9 times from NVLink, decode 2 times: less than prefill." in text
    assert "own all_reduce was not available" in text
    assert "our own measurements" not in text


def test_a_scaling_that_was_measured(generator, tmp_path):
    phase = {"transfer_us": 30.0, "bus_bytes_per_second": 1e10}
    operators = {"decode": {"step": {"us": 2e4, "percent": 100.0}, "all_reduce": {"us": 4e3, "percent": 20.0}}}
    group = {"decode": phase, "operators": operators, "stability": {"decode": {"step": {"deviation_percent": 0.5}}}}
    summary = {
        "groups": {"tp4": group, "tp8": group}, "layers": [80], "repeats": "separate passes in one build", "one_gpu": False,
        "speedup": {
            "tp4 to tp8": {"decode": {"ffn": {"measured": 1.8, "theory": 2.0}, "gap": {"measured": 1.0, "theory": None}}}
        },
    }  # fmt: skip
    (tmp_path / "scaling.json").write_text(composed("scaling", summary))
    text = generator.fill(generator.PAGE.read_text(), tmp_path)
    assert "| tp4, decode | 20 ms | 20 % | 30 µs | 10 | 0.5 % |" in text
    assert "| `ffn` |  | 1.8 (2) |" in text
    assert "| `gap` |  | 1 |" in text
    assert "have not been measured" not in text


def test_one_card_against_two_is_not_four_against_eight(generator, tmp_path):
    alone = {"operators": {"decode": {"step": {"us": 3e4, "percent": 100.0}}}, "stability": {}}
    summary = {"groups": {"tp1": alone}, "layers": [24], "repeats": "separate passes in one build", "one_gpu": False,
               "speedup": {}}  # fmt: skip
    (tmp_path / "scaling.json").write_text(composed("scaling", summary))
    text = generator.fill(generator.PAGE.read_text(), tmp_path)
    assert "Four and eight cards have not been measured yet; fewer have:" in text
    assert "| tp1, decode | 30 ms | – | – | – | 0 % |" in text


def test_what_bounds_decode_stands_beside_the_originals_15_percent(generator, tmp_path):
    def decode(step_ms, mbu):
        return {"step_ms": step_ms, "mbu_percent": mbu, "mfu_percent": 1.0}

    summary = {
        "hidden": {"1024": {"as it is": decode(6.0, 2.5), "blocking": decode(9.0, 1.5)}, "2048": {"as it is": decode(6.1, 5.0)}},
        "lengths": {"4096": {"step_ms": 4.0, "attention_ms": 3.0, "attention_percent": 75.0}},
    }  # fmt: skip
    (tmp_path / "launching.json").write_text(composed("launching", summary))
    text = generator.fill(generator.PAGE.read_text(), tmp_path)
    assert "| 1024 | 6 ms | 9 ms | 2.5 % | 1.5 % |" in text
    assert "| 2048 |" not in text, "one way of launching says nothing of the other"
    assert "| 4096 | 3 ms | 4 ms | 75 % |" in text


def test_end_to_end_is_the_prefill_and_all_steps_of_decode(generator, tmp_path):
    steps = {"static_new": {"prefill eager": 500.0, "decode graph": 10.0}, "static_old": {"prefill eager": 600.0}}
    (tmp_path / "analysis.json").write_text(composed("analysis", {"step_ms": steps}))
    text = generator.fill(generator.PAGE.read_text(), tmp_path)
    assert "| the current LightLLM, decode in CUDA graphs | 0.5 s | 10 ms | 10.2 s |" in text
    assert "| LightLLM 0.0.1 |" not in text
