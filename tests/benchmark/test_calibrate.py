"""Tests of calibration: exact fits of exact times, and the whole command on the CPU."""

import json

import pytest

from lightllm_otel.tools import cli
from lightllm_otel.tools.analysis.latency import fit
from lightllm_otel.tools.calibrate import described, sizes


class TestFit:
    def test_alpha_and_beta_of_exact_times_come_back(self):
        moved = [1024.0 * 4**power for power in range(11)]
        found = fit(moved, [10e-6 + each / 200e9 for each in moved])
        assert found.alpha == pytest.approx(10e-6)
        assert found.beta == pytest.approx(200e9)
        assert found.worst == pytest.approx(0, abs=1e-9)
        assert found.takeover_bytes == pytest.approx(2e6)

    def test_neither_part_is_negative(self):
        assert fit([1e3, 1e6], [1e-9, 2e-6]).alpha >= 0
        assert fit([1e3, 1e6], [2e-6, 1e-6]).beta == float("inf")

    def test_a_small_payload_counts_as_much_as_a_large_one(self):
        """One large payload that is 10 % late must not change the fitted latency."""
        moved = [1e3, 1e4, 1e5, 1e9]
        times = [10e-6 + each / 100e9 for each in moved]
        assert fit(moved, [*times[:-1], 1.1 * times[-1]]).alpha == pytest.approx(10e-6, rel=0.1)


def test_payloads_are_from_1_kib_to_1_gib():
    assert (sizes("cuda")[0], sizes("cuda")[-1]) == (1024, 1 << 30)


def test_what_is_measured_becomes_a_gpu_for_theory(tmp_path, capsys):
    moved = [row * 2 * 7 / 8 for row in (1e6, 1e9)]
    rows = [{"payload_bytes": size, "seconds": 20e-6 + sent / 200e9} for size, sent in zip((1e6, 1e9), moved)]
    found = {
        "name": "GPU X", "flops": 7e14, "memory_bytes_per_second": 3e12, "memory_bytes": 8e10,
        "collectives": {"all_reduce": rows},
        "pairs": [{"ranks": [0, 1], "latency_seconds": 1e-6, "bytes_per_second": 2e11}],
    }  # fmt: skip
    path = tmp_path / "x.json"
    path.write_text(json.dumps(described(found, "cuda", 8)))
    assert cli.main(["theory", "--gpu", str(path), "--model", "llama2-7b", "--tp", "8", "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)
    assert answered["link"]["kind"] == "nvlink"
    assert answered["link"]["bytes_per_second"] == pytest.approx(400e9)
    assert answered["gpu"]["flops"] == 7e14
    reduced = answered["phases"]["decode"]["operators"]["all_reduce"]
    sent = reduced["communication_bytes"]
    # The measured 20 µs per call replace NCCL's latency: two calls per layer, and one after the embedding.
    assert reduced["ideal_seconds"] == pytest.approx(65 * 20e-6 + sent / 200e9, rel=1e-3)
    assert cli.main(["theory", "--gpu", str(path), "--model", "llama2-7b", "--tp", "8"]) == 0
    assert "20 µs per call as measured" in capsys.readouterr().out
    assert cli.main(["theory", "--gpu", str(path), "--model", "llama2-7b", "--tp", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["link"]["alpha"] == {}, "it was measured between eight"


@pytest.mark.parametrize("alpha", [None, "20 us", -1.0, 3.0])
def test_a_latency_that_no_collective_has_is_one_sentence(tmp_path, capsys, alpha):
    path = tmp_path / "x.json"
    about = {"flops": 1e14, "memory_bytes_per_second": 1e12, "memory_bytes": 4e10, "nvlink_bytes_per_second": 0,
             "pcie_bytes_per_second": 32e9, "ranks": 2, "collectives": {"all_reduce": {"alpha_seconds": alpha}}}  # fmt: skip
    path.write_text(json.dumps(about))
    assert cli.main(["theory", "--gpu", str(path), "--model", "llama2-7b", "--tp", "2"]) == 1
    said = capsys.readouterr().err
    assert "has no alpha_seconds below one second for all_reduce" in said
    assert len(said.splitlines()) == 1


def test_the_whole_command_on_the_cpu(tmp_path, capsys):
    pytest.importorskip("torch", reason="torch is not installed here")
    path = tmp_path / "cpu.json"
    assert cli.main(["calibrate", "--device", "cpu", "--ranks", "2", "--out", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(path.read_text())
    assert data["flops"] > 0
    assert data["collectives"]["all_reduce"]["alpha_seconds"] >= 0
    assert [pair["ranks"] for pair in data["pairs"]] == [[0, 1]]


def test_without_a_gpu_it_says_so(capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed here")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert cli.main(["calibrate"]) == 1
    assert "torch finds no GPU on this machine" in capsys.readouterr().err
