"""Tests of the roofline model: statements of the original analysis, cases computed by hand, and torch's FLOP counter."""

import json

import pytest

from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.roofline import gpus, ideal, links, shape, work
from lightllm_otel.roofline.shape import ModelShape
from lightllm_otel.tools import cli

B, S, H = 20, 1024, 4096
# The model of the original analysis: multi-head attention, and a feed-forward of two matrices of 4h.
PLAIN = ModelShape(
    "plain", layers=1, hidden=H, heads=32, kv_heads=32, head_dim=128, intermediate=4 * H, vocab=1, ffn_matrices=2
)
LLAMA70 = shape.find("llama2-70b")
A100, A40, T4 = (gpus.find(name) for name in ("A100-SXM-40GB", "A40", "T4"))


def flops(table, *operators):
    return sum(table[operator].flops for operator in operators)


class TestTheOriginalsStatements:
    def test_attention_projections_are_8bsh2_and_the_feed_forward_16bsh2_per_layer(self):
        table = work.step(PLAIN, ideal.prefill(B, S), ranks=1)
        assert flops(table, Operator.QKV_PROJ, Operator.O_PROJ) == 8 * B * S * H**2
        assert flops(table, Operator.FFN) == 16 * B * S * H**2

    def test_attention_scores_are_4bsch_and_half_of_that_in_prefill(self):
        decode = work.step(PLAIN, work.Batch(work.Phase.DECODE, B, 1, S), ranks=1)
        assert flops(decode, Operator.ATTENTION) == 4 * B * 1 * S * H
        prefill = work.step(PLAIN, ideal.prefill(B, S), ranks=1)
        assert flops(prefill, Operator.ATTENTION) == pytest.approx(4 * B * S * S * H / 2, rel=1e-3)

    def test_communication_of_a_layer_tends_to_4bsh_times_2_bytes_and_hardly_depends_on_the_number_of_cards(self):
        layers = 80
        volumes = {}
        for ranks in (4, 8, 1024):
            reduce = work.step(LLAMA70, ideal.prefill(B, S), ranks)[Operator.ALL_REDUCE]
            in_layers = sum(size * calls for site, size, calls in reduce.payloads if site.value in ("attention", "ffn"))
            assert in_layers == layers * 2 * B * S * 8192 * 2  # the payload does not depend on the number of ranks
            volumes[ranks] = links.traffic("all_reduce", in_layers / layers, ranks)
        assert volumes[1024] == pytest.approx(4 * B * S * 8192 * 2, rel=1e-3)
        assert volumes[8] / volumes[4] == pytest.approx(7 / 6)

    def test_a100_against_a40_is_2_08_in_compute_and_5_33_between_their_nvlinks(self):
        assert A100.flops / A40.flops == pytest.approx(2.08, abs=0.01)
        assert A100.nvlink_bytes_per_second / A40.nvlink_bytes_per_second == pytest.approx(5.33, abs=0.01)

    def test_in_decode_the_ratio_of_the_feed_forward_is_that_of_the_memories_not_of_compute(self):
        seconds = {
            gpu.name: ideal.step(LLAMA70, ideal.decode(B, S, S), gpu, 4, links.link_of(gpu, 4))[Operator.FFN].seconds
            for gpu in (A100, A40)
        }
        ratio = seconds["A40"] / seconds["A100-SXM-40GB"]
        assert ratio == pytest.approx(A100.memory_bytes_per_second / A40.memory_bytes_per_second)
        assert ratio == pytest.approx(2.2, abs=0.05)

    def test_four_a40s_cross_pcie_so_5_33_is_not_their_ratio(self):
        assert links.link_of(A40, 2).kind == "nvlink"
        assert links.link_of(A40, 4).kind == "pcie"
        assert links.link_of(A100, 4).kind == "nvlink"
        assert links.link_of(A100, 8).bytes_per_second / links.link_of(A40, 4).bytes_per_second == pytest.approx(9.375)

    def test_nvlink_against_pcie_on_two_a40s_is_1_76(self):
        fast, slow = (links.link_of(A40, 2, kind) for kind in ("nvlink", "pcie"))
        assert fast.bytes_per_second / slow.bytes_per_second == pytest.approx(1.76, abs=0.01)

    @pytest.mark.parametrize("gpu", [A100, A40, T4], ids=lambda gpu: gpu.name)
    def test_prefill_of_70b_is_bound_by_compute_and_decode_by_bandwidth(self, gpu):
        link = links.link_of(gpu, 8, "pcie")
        matrices = (Operator.QKV_PROJ, Operator.O_PROJ, Operator.FFN)
        prefill = ideal.step(LLAMA70, ideal.prefill(B, S), gpu, 8, link)
        decode = ideal.step(LLAMA70, ideal.decode(B, S, S), gpu, 8, link)
        assert {prefill[operator].bound for operator in matrices} == {"compute"}
        assert {decode[operator].bound for operator in (*matrices, Operator.ATTENTION)} == {"memory"}

    def test_in_decode_latency_rules_an_all_reduce_so_a_faster_link_shows_less(self):
        """NVLink and PCI Express between two A40, LLaMA-7B, batch 64: 0.5 MB per call in decode, 0.5 GB in prefill."""
        fast, slow = (links.link_of(A40, 2, kind) for kind in ("nvlink", "pcie"))
        payload = 64 * 4096 * 2
        assert payload < links.takeover_payload("all_reduce", 4, links.link_of(A100, 4)) / 10
        decode, prefill = (
            links.ring_seconds("all_reduce", size, 2, slow) / links.ring_seconds("all_reduce", size, 2, fast)
            for size in (payload, 1024 * payload)
        )
        assert prefill == pytest.approx(1.76, abs=0.01)
        assert decode < 1.6


class TestBytes:
    def test_weights_are_read_once_and_the_cache_is_read_whole(self):
        """LLaMA-2-70B, 4 ranks, one request of one token at a context of 1000, in fp16, per layer."""
        table = work.step(LLAMA70, work.Batch(work.Phase.DECODE, 1, 1, 1000), ranks=4)
        h, q, kv, i = 8192, 64 * 128 // 4, 2 * 8 * 128 // 4, 28672 // 4
        assert table[Operator.FFN].memory_bytes == 80 * 2 * (3 * h * i + 2 * h + 3 * i)
        assert table[Operator.QKV_PROJ].memory_bytes == 80 * 2 * (h * (q + kv) + h + q + kv)
        assert table[Operator.ATTENTION].memory_bytes == 80 * 2 * (1000 * kv + 2 * q)

    def test_a_rank_has_at_least_one_head_of_the_cache(self):
        few = shape.find("qwen2-7b")  # 4 KV heads
        at_4, at_8 = (
            work.step(few, ideal.decode(1, 100, 1), ranks)[Operator.KV_WRITE].memory_bytes for ranks in (4, 8)
        )
        assert at_4 == at_8

    def test_a_mixture_reads_the_experts_that_its_tokens_need(self):
        mixture = shape.find("mixtral-8x7b")
        one = 3 * 4096 * 14336 * 2 * 32
        seen = [
            work.step(mixture, ideal.decode(requests, 1, 1), 1)[Operator.FFN].memory_bytes / one
            for requests in (1, 1000)
        ]
        assert seen == [pytest.approx(2, rel=0.01), pytest.approx(8, rel=0.1)]

    def test_quantised_weights_take_half(self):
        halves, bytes_ = (work.step(LLAMA70, ideal.decode(1, 100, 1), 4, element) for element in (2, 1))
        assert halves[Operator.FFN].memory_bytes == 2 * bytes_[Operator.FFN].memory_bytes


class TestAgainstTorch:
    """Compare with ``torch.utils.flop_counter`` on a model of transformers."""

    @pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 2)], ids=["multi-head", "grouped-query"])
    @pytest.mark.parametrize("phase", ["prefill", "decode"])
    def test_counted_flops_are_ours_within_a_percent(self, heads, kv_heads, phase):
        torch = pytest.importorskip("torch", reason="torch is not installed here")
        transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
        from torch.utils.flop_counter import FlopCounterMode

        config = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 3, "num_attention_heads": heads,
                  "num_key_value_heads": kv_heads, "vocab_size": 1000}  # fmt: skip
        requests, length = 4, 96
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, attn_implementation="eager"))
        prompt = torch.zeros(requests, length, dtype=torch.long)
        with torch.no_grad():
            cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values if phase == "decode" else None
            given = prompt[:, :1] if phase == "decode" else prompt
            with FlopCounterMode(display=False) as counter:
                model(given, past_key_values=cache, logits_to_keep=1)
        own = shape.from_config(config)
        context = length + 1 if phase == "decode" else length
        batch = work.Batch(work.Phase(phase), requests, given.shape[1], context)
        table = work.step(own, batch, ranks=1)
        # The counter includes the masked pairs of a prompt, which a kernel skips.
        all_pairs = batch.requests * batch.new * batch.context / batch.attended
        matrices = flops(table, Operator.QKV_PROJ, Operator.O_PROJ, Operator.FFN, Operator.LM_HEAD)
        assert counter.get_total_flops() == pytest.approx(
            matrices + all_pairs * table[Operator.ATTENTION].flops, rel=0.01
        )


class TestTables:
    @pytest.mark.parametrize("gpu", gpus.GPUS, ids=lambda gpu: gpu.name)
    def test_every_gpu_has_its_figures_and_a_source(self, gpu):
        assert 50e12 < gpu.flops < 5000e12
        assert 0.2e12 < gpu.memory_bytes_per_second < 10e12
        assert (gpu.nvlink_group > 1) == (gpu.nvlink_bytes_per_second > 0)
        assert gpu.source.startswith("https://")

    @pytest.mark.parametrize(
        ("said", "meant"),
        [
            ("NVIDIA A100-SXM4-40GB", "A100-SXM-40GB"), ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
            ("NVIDIA A100 80GB PCIe", "A100-PCIE-80GB"), ("NVIDIA A40", "A40"), ("Tesla T4", "T4"),
            ("Tesla V100-SXM2-32GB", "V100-SXM2"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"),
            ("NVIDIA H100 80GB HBM3", "H100-SXM"), ("NVIDIA H100 PCIe", "H100-PCIE"), ("NVIDIA H200", "H200"),
            ("NVIDIA H20", "H20"), ("NVIDIA GeForce RTX 4090", "RTX-4090"), ("NVIDIA B200", "B200"),
        ],
    )  # fmt: skip
    def test_a_gpu_is_found_by_what_nvml_calls_it(self, said, meant):
        assert gpus.find(said).name == meant

    @pytest.mark.parametrize(
        ("name", "billions"),
        [("llama2-7b", 6.7), ("llama2-13b", 13.0), ("llama2-70b", 69), ("llama3-8b", 8.0), ("mistral-7b", 7.2),
         ("qwen2-72b", 72.7), ("qwen3-30b-a3b", 30.5), ("mixtral-8x7b", 46.7), ("deepseek-v2", 236), ("deepseek-v3", 671)],
    )  # fmt: skip
    def test_shapes_have_as_many_weights_as_their_models(self, name, billions):
        """Derive the weights from the bytes of a decode step whose many requests use every expert."""
        own = shape.find(name)
        element, many = 1, 1 << 20
        full, twice = (
            work.step(own, work.Batch(work.Phase.DECODE, requests, 1, 0), 1, element) for requests in (many, 2 * many)
        )
        matrices = (Operator.QKV_PROJ, Operator.O_PROJ, Operator.FFN, Operator.LM_HEAD)
        weights = sum(2 * full[each].memory_bytes - twice[each].memory_bytes for each in matrices)
        embedding = own.vocab * own.hidden
        assert (weights + embedding) / 1e9 == pytest.approx(billions, rel=0.03)

    def test_a_config_in_the_wild_is_read(self):
        own = shape.from_config(
            {"hidden_size": 2048, "n_head": 16, "n_layer": 4, "vocab_size": 9, "hidden_act": "gelu"}
        )
        assert own.is_plain
        moe = shape.from_config(
            {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 9, "num_experts": 8,
             "num_experts_per_tok": 2, "moe_intermediate_size": 32, "intermediate_size": 128, "head_dim": 16}
        )  # fmt: skip
        assert (moe.experts.count, moe.experts.active, moe.experts.intermediate) == (8, 2, 32)


class TestTheCommand:
    ASKED = ("theory", "--model", "llama2-70b", "--gpu", "A100-SXM-40GB", "--tp", "4", "--batch-size", "20",
             "--input-len", "1024", "--output-len", "1024")  # fmt: skip

    def test_json_has_every_operator_with_its_figures_and_its_bound(self, capsys):
        assert cli.main([*self.ASKED, "--json"]) == 0
        answered = json.loads(capsys.readouterr().out)
        for phase in ("prefill", "decode"):
            operators = answered["phases"][phase]["operators"]
            assert set(operators) >= {"qkv_proj", "attention", "o_proj", "ffn", "all_reduce", "lm_head"}
            for row in operators.values():
                assert {"flops", "memory_bytes", "communication_bytes", "ideal_seconds", "bound"} <= set(row)
        assert answered["phases"]["prefill"]["operators"]["ffn"]["bound"] == "compute"
        assert answered["phases"]["decode"]["operators"]["ffn"]["bound"] == "memory"
        assert answered["phases"]["decode"]["operators"]["all_reduce"]["bound"] == "link"
        assert answered["link"]["kind"] == "nvlink"

    def test_the_link_can_be_chosen(self, capsys):
        assert cli.main([*self.ASKED, "--json", "--link", "pcie"]) == 0
        assert json.loads(capsys.readouterr().out)["link"]["bytes_per_second"] == 64e9

    @pytest.mark.parametrize(
        ("dtype", "said"), [("float8", "compute more"), ("int8", "compute more"), ("float32", "compute less")]
    )
    def test_of_what_types_the_peaks_are_is_said_where_it_is_another(self, capsys, dtype, said):
        assert cli.main([*self.ASKED, "--dtype", dtype]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "peak FLOP/s are for 16-bit types" in line)
        assert f"most GPUs {said} per second in {dtype}" in line
        for same in ("float16", "bfloat16"):
            assert cli.main([*self.ASKED, "--dtype", same]) == 0
            assert "16-bit" not in capsys.readouterr().out

    def test_an_all_reduce_of_decode_is_a_ring_or_over_nvlink_one_shot(self, capsys):
        for link, has_custom in (("nvlink", True), ("pcie", False)):
            assert cli.main([*self.ASKED, "--json", "--link", link]) == 0
            seconds = json.loads(capsys.readouterr().out)["link"]["decode_all_reduce_seconds"]
            assert (seconds["one_shot"] is not None) == has_custom
            assert cli.main([*self.ASKED, "--link", link]) == 0
            assert ("by a one-shot custom kernel" in capsys.readouterr().out) == has_custom
        # Two ranks over NVLink, 512 KiB: what benchmarks/results/links.json has measured on 450 GB/s one way.
        assert links.one_shot_seconds(524288, 2, links.Link("nvlink", 900e9)) == pytest.approx(6.463e-6, rel=0.01)

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            (("--gpu", "A100-SXM-40GB", "--tp", "2"), "for keys and values, which do not fit into the 40 GB"),
            (("--batch-size", "200"), "do not fit into the 40 GB of A100-SXM-40GB"),
            (("--gpu", "A40", "--link", "nvlink"), "NVLink connects 2 A40, so 4 of them use PCI Express"),
        ],
    )
    def test_what_no_such_machine_can_do_is_said(self, capsys, asked, said):
        assert cli.main(list(self.ASKED)) == 0
        assert "note: " not in capsys.readouterr().out
        assert cli.main([*self.ASKED, *asked]) == 0
        (note,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note: "))
        assert said in note

    def test_a_name_may_be_written_as_its_makers_do(self, capsys):
        assert cli.main([*self.ASKED, "--model", "LLaMA2-70B"]) == 0
        assert "LLaMA2-70B on 4" in capsys.readouterr().out

    def test_a_config_here_has_the_name_of_its_folder(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        assert cli.main([*self.ASKED, "--model", "config.json"]) == 1
        assert f"the config of {tmp_path.name} has no hidden_size" in capsys.readouterr().err

    def test_a_recording_has_its_own_sizes(self, capsys):
        assert cli.main(["theory", "--run", "h200-llama-7b-tp1", "--tp", "2", "--batch-size", "4"]) == 2
        assert "remove --tp and --batch-size, or --run" in capsys.readouterr().err

    def test_a_person_gets_a_table(self, capsys):
        assert cli.main(list(self.ASKED)) == 0
        said = capsys.readouterr().out
        assert "llama2-70b on 4 × A100-SXM-40GB" in said
        assert "bandwidth takes over latency at" in said
        operators = [line.split()[0] for line in said.splitlines() if line.startswith("  ")]
        assert (
            operators.index("ffn") < operators.index("all_reduce") < operators.index("embedding")
        )  # the longest first

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            (("--gpu", "A1000"), "GPU 'A1000' is not known; known: A100-SXM-40GB"),
            (("--model", "gpt-5"), "model 'gpt-5' is not known; known: llama2-7b"),
            (("--gpu", "T4", "--link", "nvlink"), "T4 has no NVLink; give --link pcie"),
            (("--tp", "3"), "64 heads, which cannot be divided evenly among 3 ranks"),
            (("--batch-size", "0"), "whole numbers of at least 1"),
        ],
    )
    def test_what_cannot_be_answered_is_one_sentence(self, capsys, changed, said):
        assert cli.main([*self.ASKED, *changed]) == 1
        problem = capsys.readouterr().err
        assert said in problem
        assert len(problem.splitlines()) == 1

    def test_an_unknown_gpu_can_be_described_in_a_file(self, capsys, tmp_path):
        described = {"name": "mine", "flops": 1e14, "memory_bytes_per_second": 1e12, "memory_bytes": 4e10,
                     "nvlink_bytes_per_second": 0, "pcie_bytes_per_second": 32e9}  # fmt: skip
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(described))
        assert cli.main([*self.ASKED, "--gpu", str(path)]) == 0
        assert "4 × mine" in capsys.readouterr().out
        path.write_text(json.dumps({"name": "mine", "flops": 1e14}))
        assert cli.main([*self.ASKED, "--gpu", str(path)]) == 1
        assert "lacks memory_bytes_per_second" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"memory_bytes_per_second": 0}, "has memory_bytes_per_second 0, which no GPU has"),
            ({"flops": -1}, "has flops -1"),
            ({"memory_bytes": float("nan")}, "has memory_bytes nan"),
            ({"flops": 10**400}, "has flops 1000"),
            ({"nvlink_group": "two"}, "has nvlink_group 'two'"),
            ({"pcie_bytes_per_second": 0}, "measure it with lightllm-otel calibrate --ranks"),
            (None, "does not describe a GPU"),
        ],
    )
    def test_a_gpu_that_cannot_be_is_one_sentence(self, capsys, tmp_path, changed, said):
        described = {"name": "mine", "flops": 1e14, "memory_bytes_per_second": 1e12, "memory_bytes": 4e10,
                     "nvlink_bytes_per_second": 0, "pcie_bytes_per_second": 32e9}  # fmt: skip
        path = tmp_path / "mine.json"
        path.write_text(json.dumps([] if changed is None else {**described, **changed}))
        for words in (self.ASKED, ("plan", "--model", "llama2-70b", "--machine", f"{path}:8:1")):
            assert cli.main([*words, *(("--gpu", str(path)) if words is self.ASKED else ())]) == 1
            problem = capsys.readouterr().err
            assert said in problem
            assert len(problem.splitlines()) == 1

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"num_attention_heads": 0}, "has num_attention_heads 0"),
            ({"hidden_size": -4096}, "has hidden_size -4096"),
            ({"num_hidden_layers": "many"}, "has num_hidden_layers 'many'"),
            ({"num_hidden_layers": 1.5}, "has num_hidden_layers 1.5"),
            ({"vocab_size": float("inf")}, "has vocab_size inf"),
            ({"vocab_size": 10**400}, "has vocab_size 1000"),
            ({"intermediate_size": [1, 2]}, "has intermediate_size [1, 2]"),
            ({"num_attention_heads": 8192}, "8192 heads for a hidden size of 4096"),
            ({"num_experts": 8, "num_experts_per_tok": -1}, "has num_experts_per_tok -1"),
        ],
    )
    def test_a_shape_that_no_model_has_is_one_sentence(self, capsys, tmp_path, changed, said):
        config = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "intermediate_size": 11008,
                  "vocab_size": 32000}  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
        assert cli.main([*self.ASKED, "--model", str(tmp_path)]) == 1
        problem = capsys.readouterr().err
        assert said in problem
        assert len(problem.splitlines()) == 1

    @pytest.mark.parametrize("content", ["{", "[]", "3"])
    def test_a_damaged_config_is_one_sentence(self, capsys, tmp_path, content):
        (tmp_path / "config.json").write_text(content)
        assert cli.main([*self.ASKED, "--model", str(tmp_path)]) == 1
        assert (
            "cannot be read as JSON" if content == "{" else "does not hold a JSON object"
        ) in capsys.readouterr().err

    def test_a_link_that_was_not_measured_is_not_needed_by_a_single_rank(self, capsys, tmp_path):
        described = {"flops": 1e14, "memory_bytes_per_second": 1e12, "memory_bytes": 4e10, "nvlink_bytes_per_second": 0.0,
                     "pcie_bytes_per_second": 0.0}  # fmt: skip
        (tmp_path / "one.json").write_text(json.dumps(described))
        assert cli.main([*self.ASKED, "--gpu", str(tmp_path / "one.json"), "--tp", "1"]) == 0
        assert cli.main(["report", "h200-llama-tp2", "--gpu", str(tmp_path / "one.json")]) == 0

    def test_a_run_stands_beside_it_with_mfu_and_mbu(self, capsys):
        assert cli.main(["theory", "--run", "h200-llama-7b-tp1", "--model", "llama2-7b", "--json"]) == 0
        answered = json.loads(capsys.readouterr().out)
        assert answered["question"]["gpu"] == "H200"
        for phase in ("prefill", "decode"):
            measured = answered["phases"][phase]["measured"]["eager"]
            assert 0 < measured["mfu"] < 1
            assert 0 < measured["mbu"] < 1
            assert measured["step_seconds"] > answered["phases"][phase]["step_seconds"]
        assert cli.main(["theory", "--run", "h200-llama-7b-tp1", "--model", "llama2-7b"]) == 0
        assert "MFU" in capsys.readouterr().out

    def test_a_run_that_does_not_say_its_model_asks_for_it(self, capsys):
        assert cli.main(["theory", "--run", "h200-llama-7b-tp1"]) == 1
        assert "pass --model" in capsys.readouterr().err
        assert cli.main(["theory", "--model", "llama2-7b"]) == 2
