"""Which link a group has, and what it could carry, from NVML's answers on known machines."""

import logging

import nvml_answers
import pytest
from nvml_answers import FakeGpu, FakeNvml

from lightllm_otel.exporter import nvml as nvml_module
from lightllm_otel.exporter.link import joined, link
from lightllm_otel.exporter.nvml import Nvml
from lightllm_otel.roofline import gpus, link_rates


def found(machine, numbers=None, **facts):
    numbers = list(range(len(machine.gpus))) if numbers is None else numbers
    return link(machine.facts(tp=len(numbers), numbers=numbers, **facts), Nvml(machine))


@pytest.mark.parametrize(
    ("machine", "name", "gigabytes", "path"),
    [
        (nvml_answers.a100_sxm(), "nvlink3x12", 600, "SYS"),
        (nvml_answers.h200(), "nvlink4x18", 900, "SYS"),
        (nvml_answers.h800(), "nvlink4x8", 400, "SYS"),
        (nvml_answers.v100_cube(), "nvlink2x6", 300, "SYS"),
        (nvml_answers.a40_pairs(2), "nvlink3x4", 112.5, "NODE"),
        (nvml_answers.a40_pairs(4), "pcie4x16-SYS", 64, "SYS"),
        (nvml_answers.t4(2, path=10), "pcie3x16-PIX", 32, "PIX"),
        (nvml_answers.t4(4, path=20), "pcie3x16-PXB", 32, "PXB"),
        (nvml_answers.t4(4, path=30), "pcie3x16-PHB", 32, "PHB"),
    ],
)
def test_the_link_of_a_group_on_known_machines(machine, name, gigabytes, path):
    group = found(machine)
    assert (group.name, group.bytes_per_second / 1e9, group.path) == (name, gigabytes, path)


def test_two_a40_of_different_pairs_have_pci_express_only():
    group = found(nvml_answers.a40_pairs(4), numbers=[1, 2])
    assert group.name == "pcie4x16-SYS"
    assert group.ports["00000000:11:00.0"].nvlink == "none", "its NVLinks lead out of the group"


def test_links_that_lead_out_of_the_group_do_not_count():
    group = found(nvml_answers.v100_cube(), numbers=[0, 3])
    assert (group.name, group.bytes_per_second) == ("nvlink2x2", 100e9)


def test_the_slowest_gpu_decides():
    machine = FakeNvml([FakeGpu(pcie=(4, 16)), FakeGpu(pcie=(4, 8))], far=50)
    assert (found(machine).name, found(machine).bytes_per_second) == ("pcie4x8-SYS", 32e9)


def test_a_broken_nvlink_is_not_counted():
    machine = nvml_answers.h200(2)
    machine.gpus[1] = FakeGpu(("switch",) * 17 + (None,), version=6, capability=(9, 0), pcie=(5, 16))
    assert found(machine).name == "nvlink4x17"


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ([], "unknown"),
        ([{"tp": 1}], "none"),
        ([{"tp": 2}, {"tp": 2}], "unknown"),
        (nvml_answers.h200().facts(tp=1, numbers=[0]), "none"),
        (nvml_answers.h200().facts(tp=2, numbers=[0, 0]), "same-gpu"),
        (nvml_answers.h200().facts(tp=16, numbers=range(8), nodes=2), "network"),
        (nvml_answers.h200().facts(tp=2, numbers=[0]), "unknown"),
        (nvml_answers.h200().facts(tp=2, numbers=[0, 77]), "unknown"),
    ],
)
def test_what_is_no_link_between_gpus_of_this_machine_has_no_peak(facts, kind):
    group = link(facts, Nvml(nvml_answers.h200()))
    assert (group.kind, group.name, group.bytes_per_second) == (kind, kind, 0.0)


def test_a_driver_that_answers_nothing_leaves_the_link_unknown():
    class Mute:
        NVML_P2P_STATUS_OK = 0

        def nvmlDeviceGetHandleByPciBusId(self, bus):
            return bus

    group = link(nvml_answers.h200(2).facts(), Nvml(Mute()))
    assert (group.name, group.bytes_per_second) == ("unknown", 0.0)


def test_no_nvml_is_one_line_in_the_log(monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    caplog.set_level(logging.INFO, "lightllm_otel")
    assert nvml_module.load() is None
    assert ["NVML is not available" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("name", "generation", "links", "capability"),
    [
        ("A100-SXM-40GB", 3, 12, (8, 0)), ("A40", 3, 4, (8, 6)), ("RTX-3090", 3, 4, (8, 6)), ("V100-SXM2", 2, 6, (7, 0)),
        ("H100-SXM", 4, 18, (9, 0)), ("H200", 4, 18, (9, 0)), ("H800", 4, 8, (9, 0)), ("B200", 5, 18, (10, 0)),
    ],
)  # fmt: skip
def test_links_by_generation_add_up_to_what_data_sheets_say(name, generation, links, capability):
    assert (
        link_rates.nvlink_bytes_per_second(generation, links, capability) == gpus.BY_NAME[name].nvlink_bytes_per_second
    )


@pytest.mark.parametrize("name", ["T4", "A40", "H200"])
def test_lanes_by_generation_add_up_to_what_data_sheets_say(name):
    generation = {"T4": 3, "A40": 4, "H200": 5}[name]
    assert link_rates.pcie_bytes_per_second(generation, 16) == gpus.BY_NAME[name].pcie_bytes_per_second


def test_every_link_has_a_source():
    table = [*link_rates.NVLINK.values(), link_rates.NARROW_NVLINK, *link_rates.PCIE.values()]
    assert all(rate.source.startswith("https://") for rate in table)
    assert set(link_rates.NVLINK_GENERATION.values()) == set(link_rates.NVLINK)


@pytest.mark.parametrize(
    ("machine", "pairs"),
    [
        (nvml_answers.h200(), {(0, 1): "NV18"}),
        (nvml_answers.a40_pairs(4), {(0, 1): "NV4", (1, 2): "SYS"}),
        (nvml_answers.v100_cube(), {(0, 3): "NV2"}),
        (nvml_answers.t4(2, path=10), {(0, 1): "PIX"}),
    ],
)
def test_two_gpus_are_joined_as_the_matrix_of_nvidia_smi_says(machine, pairs):
    for (one, two), said in pairs.items():
        assert joined(Nvml(machine), (one, two), (machine.bus(one), machine.bus(two))) == said


def test_gpus_that_do_not_say_how_they_are_joined_get_a_question_mark():
    class Silent(FakeNvml):
        nvmlDeviceGetTopologyCommonAncestor = nvmlDeviceGetP2PStatus = None

    assert joined(Nvml(Silent([FakeGpu(), FakeGpu()])), (0, 1), ("", "")) == "?"
