"""Plans: limits are kept, the cheapest is chosen, and what is assumed is said."""

import json
import math

import pytest
import simulated

from lightllm_otel.records.vocabulary import Mode, Phase
from lightllm_otel.roofline import gpus, memory, shape
from lightllm_otel.tools import cli
from lightllm_otel.tools.analysis.efficiency import efficiencies
from lightllm_otel.tools.analysis.plan import ASSUMED, USABLE, Demand, MachineOffer, NoPlan, plan
from lightllm_otel.tools.analysis.runs import load

LLAMA70 = shape.find("llama2-70b")
A100, A40, T4 = (gpus.find(name) for name in ("A100-SXM-40GB", "A40", "T4"))


def load_of(own=LLAMA70, first_token=math.inf, token=math.inf, length=1024):
    return Demand(own, length, 1024, first_token, token, 2, 25e9)


def choice(found, gpu, phase):
    (each,) = (each for each in found.choices if (each.gpu, each.phase) == (gpu.name, phase))
    return each


class TestMemory:
    @pytest.mark.parametrize(
        ("name", "billions"),
        [("llama2-7b", 6.74), ("llama2-13b", 13.0), ("llama2-70b", 69.0), ("llama3-8b", 8.03), ("mixtral-8x7b", 46.7),
         ("qwen2-72b", 72.7), ("deepseek-v2", 236), ("deepseek-v3", 671)],
    )  # fmt: skip
    def test_models_weigh_what_their_names_say(self, name, billions):
        assert memory.weights(shape.find(name)) / 1e9 == pytest.approx(billions, rel=0.01)

    def test_a_token_of_llama2_7b_takes_half_a_mebibyte(self):
        assert memory.cache_bytes(shape.find("llama2-7b"), 1, 2) == 2 * 32 * 4096 * 2

    def test_grouped_queries_take_less_and_are_not_split_below_a_head(self):
        assert memory.cache_bytes(LLAMA70, 1, 2) == 80 * 2 * 8 * 128 * 2
        assert memory.cache_bytes(LLAMA70, 16, 2) == memory.cache_bytes(LLAMA70, 8, 2)

    def test_latent_attention_keeps_a_copy_in_every_rank(self):
        own = shape.find("deepseek-v3")
        assert memory.cache_bytes(own, 8, 2) == memory.cache_bytes(own, 1, 2) == 61 * (512 + 64) * 2


class TestPlan:
    MACHINES = (MachineOffer(A100, 8, 16.0), MachineOffer(A40, 8, 5.0))

    def test_everything_fits_into_memory(self):
        for each in plan(self.MACHINES, load_of()).choices:
            gpu = gpus.find(each.gpu)
            tokens = 1024 + (1024 if each.phase == "decode" else 0)
            used = memory.weight_bytes(LLAMA70, each.tp, 2) + each.requests * tokens * memory.cache_bytes(
                LLAMA70, each.tp, 2
            )
            assert used <= USABLE * gpu.memory_bytes

    def test_limits_on_time_are_kept_with_the_way_of_the_cache_included(self):
        asked = load_of(first_token=1.5, token=0.04)
        found = plan((MachineOffer(A100, 8, 16.0),), asked)
        assert found.prefill.step_seconds + asked.transfer_seconds <= 1.5
        assert found.decode.step_seconds <= 0.04
        assert found.prefill.limited_by == found.decode.limited_by == "the limit on time"

    def test_the_cheapest_of_each_phase_is_chosen_and_a_price_decides(self):
        dear, cheap = (
            plan((MachineOffer(A100, 8, 16.0), MachineOffer(A40, 8, price)), load_of()) for price in (50.0, 1.0)
        )
        assert {dear.prefill.gpu, dear.decode.gpu} == {A100.name}
        assert {cheap.prefill.gpu, cheap.decode.gpu} == {A40.name}
        assert dear.apart == pytest.approx(dear.prefill.cost + dear.decode.cost)

    def test_cost_is_price_over_tokens(self):
        found = plan(self.MACHINES, load_of()).prefill
        assert found.cost == pytest.approx({A100.name: 16.0, A40.name: 5.0}[found.gpu] / 3600 / found.rate * 1e6)

    def test_the_range_is_that_of_the_efficiency_where_only_it_decides(self):
        found = choice(plan(self.MACHINES, load_of()), A100, "decode")
        low, middle, high = ASSUMED
        assert found.range == pytest.approx((found.cost * middle / high, found.cost * middle / low))

    def test_apart_never_costs_more_than_together(self):
        found = plan(self.MACHINES, load_of())
        assert all(found.apart <= cost + 1e-12 for cost in found.together.values())

    @pytest.mark.parametrize(
        ("machine", "asked", "said"),
        [
            (MachineOffer(T4, 8, 1.0), load_of(), "its memory holds no request beside the weights"),
            (MachineOffer(A100, 8, 1.0), load_of(first_token=0.01), "more than the limit leaves"),
        ],
    )
    def test_where_there_is_none_the_limit_in_the_way_is_named(self, machine, asked, said):
        with pytest.raises(NoPlan, match=said):
            plan((machine,), asked)

    def test_a_run_says_how_near_to_theory_a_gpu_comes(self, tmp_path):
        run = load(simulated.write(tmp_path, steps=20, layers=32))
        known = efficiencies([run], LLAMA70)
        assert 0 < known["H200", Phase.DECODE].efficiency <= 1
        found = plan((MachineOffer(gpus.find("H200"), 1, 4.0),), load_of(shape.find("llama2-7b")), [run])
        assert found.decode.measured
        assert found.decode.efficiency == known["H200", Phase.DECODE].efficiency
        low, high = known["H200", Phase.DECODE].range
        efficiency = known["H200", Phase.DECODE].efficiency
        assert low < efficiency < high <= 1
        assert found.decode.range == pytest.approx(
            (found.decode.cost * efficiency / high, found.decode.cost * efficiency / low), rel=0.05
        )
        assert found.decode.range[0] < found.decode.cost < found.decode.range[1]
        assert found.notes == ()

    def test_a_machine_that_cannot_do_it_is_named_beside_those_that_can(self):
        found = plan((MachineOffer(A100, 8, 16.0), MachineOffer(T4, 8, 1.0)), load_of())
        assert {each.gpu for each in found.choices} == {A100.name}
        for phase in ("prefill", "decode"):
            assert any(each.startswith(f"8 × T4 in {phase}: its memory holds") for each in found.refusals)

    def test_a_run_on_a_gpu_that_is_not_asked_for_is_said_to_be_of_no_use(self, tmp_path):
        run = load(simulated.write(tmp_path / "run", steps=20))
        (note,) = plan((MachineOffer(A100, 8, 16.0),), load_of(), [run]).notes
        assert "it is of H200, which is no --machine" in note
        unknown = load(simulated.write(tmp_path / "unknown", steps=20, facts={"gpu_name": "NVIDIA X1"}))
        (note,) = plan((MachineOffer(A100, 8, 16.0),), load_of(), [unknown]).notes
        assert "it is of NVIDIA X1, which is no --machine" in note

    def test_decode_without_graphs_is_no_fair_measure_beside_what_is_assumed(self, tmp_path):
        eager = load(simulated.write(tmp_path / "eager", steps=20, layers=32, mode=Mode.EAGER))
        graphs = load(simulated.write(tmp_path / "graphs", steps=20, layers=32))
        h200, small = MachineOffer(gpus.find("H200"), 1, 4.0), load_of(shape.find("llama2-7b"))
        (note,) = plan((h200, MachineOffer(A40, 8, 5.0)), small, [eager]).notes
        assert "decode on H200 was measured without CUDA graphs" in note
        assert "beside A40" in note
        assert plan((h200, MachineOffer(A40, 8, 5.0)), small, [graphs]).notes == ()
        assert plan((h200,), small, [eager]).notes == ()


class TestTheCommand:
    ASKED = ("plan", "--model", "llama2-70b", "--machine", "A100-SXM-40GB:8:16", "--machine", "A40:8:5")

    def test_a_person_gets_a_table_and_the_assumptions(self, capsys):
        assert cli.main([*self.ASKED, "--ttft", "3"]) == 0
        said = capsys.readouterr().out
        assert "→ 8 × A40" in said
        assert "Assumed: GPUs without a run reach 60 %" in said

    def test_what_is_not_possible_and_what_a_run_is_worth_is_printed(self, capsys):
        words = [*self.ASKED, "--machine", "T4:8:1", "--run", "h200-llama-tp2"]
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        assert "Not possible: 8 × T4 in decode: its memory holds no request" in said
        assert "note: the run h200-llama-tp2 says nothing here: it is of H200" in said
        assert cli.main([*words, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert len(data["refusals"]) == 2
        assert len(data["notes"]) == 1

    def test_json(self, capsys):
        assert cli.main([*self.ASKED, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["kind"] == "plan"
        assert len(data["choices"]) == 4
        assert data["assumptions"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--machine", "A40"), "pass GPU:CARDS:PRICE"),
            (("--machine", "A1000:8:1"), "GPU 'A1000' is not known"),
            (("--machine", "A40:0:1"), "cards and price must be above 0"),
            (("--machine", "A40:8:nan"), "--machine 'A40:8:nan': cards and price must be above 0 and finite"),
            (("--machine", "A40:8:inf"), "--machine 'A40:8:inf': cards and price must be above 0 and finite"),
            (("--ttft", "0"), "must be above 0"),
            (("--tpot", "nan"), "must be above 0"),
            (("--network", "nan"), "must be above 0"),
            (("--ttft", "0.001"), "no machine can do it"),
            (("--run", "nothing"), "there is no nothing"),
        ],
    )
    def test_what_cannot_be_planned_is_one_sentence(self, capsys, words, said):
        assert cli.main([*self.ASKED, *words]) == 1
        problem = capsys.readouterr().err
        assert said in problem
        assert len(problem.splitlines()) == 1
