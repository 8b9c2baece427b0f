"""Which place of which result each figure in the prose of a document says: ``(sentence, value for each {}, …)``."""

from statistics import fmean

from binding import at, column, rows


def of_7b(name):
    """Values of the 7B shape, of all its batch sizes."""
    return [case[name] for shape, case in at("accuracy", "by_case").items() if shape.startswith("llama-7b, ")]


def of_two(*ways):
    """Summaries of accuracy.py with two ranks, each by one way."""
    return [at(f"accuracy-tp2{way}", "operators").values() for way in ways]


def moved(result, **wanted):
    """Return the transfer of passes without a late rank, and how far one with a late rank lies from it at most, both in µs."""
    plain = fmean(row["transfer_us"] for row in rows(result, kind="plain", **wanted))
    return plain, max(abs(row["transfer_us"] - plain) for row in rows(result, kind="slow", **wanted))


ACCURACY = [
    ("is {} µs in the worst of", at("accuracy", "median_error_us_without_cupti")),
    ("in the worst of {} cases (four shapes", len(at("accuracy", "by_case"))),
    ("during the plugin's steps as well it is {} µs", at("accuracy", "median_error_us")),
    ("Shares are within {} points for the 7B shape", max(of_7b("max_share_error_points_without_cupti"))),
    ("within {} points in the worst case, a mixture of experts", at("accuracy", "max_share_error_points_without_cupti")),
    ("read by CUPTI and by the plugin differ by {} µs", at("accuracy", "clock_check_median_us")),
    ("**Boundaries cover the step**: {} % of it", min(of_7b("closure_percent_without_cupti"))),
    ("{} % for the worst model of 8 layers", at("accuracy", "step_closure_percent")),
    ("**A sampled step is {} % slower**", at("accuracy", "distortion_percent_by_case/llama-7b, batch 20")),
    ("it is {} % slower in the worst case", max(at("accuracy", "distortion_percent_by_case").values())),
    ("up to {} % for the 7B shape and up to", max(of_7b("gap_percent_without_cupti"))),
    ("up to {} % for models of 8 layers", at("accuracy", "gap_percent_max")),
    ("the GPU is idle for {} % of an operator's interval", at("accuracy", "eager/decode eager/median_idle_percent")),
    ("in eager decode and for {} % in prefill", at("accuracy", "eager/prefill eager/median_idle_percent")),
    (
        "differ from CUPTI's by {} µs ({} %) in decode",
        at("accuracy", "eager/decode eager/median_error_us"),
        at("accuracy", "eager/decode eager/median_error_percent"),
    ),
    (
        "in decode and {} µs ({} %) in prefill",
        at("accuracy", "eager/prefill eager/median_error_us"),
        at("accuracy", "eager/prefill eager/median_error_percent"),
    ),
    ("is at least {} % of the step as a separate pair of events", at("first_light", "step_closure_percent")),
]  # fmt: skip

TWO_RANKS = [
    ("a call over NVLink read up to {} µs too long", max(at("superseded/accuracy-tp2-earlier", "transfer/*/error_us"))),
    ("These are medians over {} steps", max(at("accuracy-tp2", "transfer/*/steps"))),
    (
        "The embedding reads {} to {} µs too long in such",
        min(case["embedding"]["error_us"] for cases in of_two("", "-own", "-no-p2p", "-no-mixing") for case in cases),
        max(case["embedding"]["error_us"] for cases in of_two("", "-own", "-no-p2p", "-no-mixing") for case in cases),
    ),
    ("the gather of the logits up to {} with", max(at("accuracy-tp2-own", "operators/*/all_gather/error_us"))),
    ("a sampled step is up to {} % slower", max(at("accuracy-tp2-no-p2p", "distortion_percent_by_case/*"))),
    ("takes {} and {} µs in LightLLM's own graph, by CUPTI", *at("accuracy-tp2-no-mixing", "transfer/*/cupti_us")),
]  # fmt: skip

TOKENS = [row for row in rows("overhead", kind="tokens") if row["part"] != "again"]
(OF_TWO,) = rows("overhead", kind="tp2_tokens", server="instrumented")
COST = [
    ("**`off` still costs {} µs of Python a step.**", at("overhead", "critical_path_us/off")),
    ("a step that is not sampled has {} µs there", at("overhead", "critical_path_us/default")),
    ("the same hook in a loop costs {} ns", at("overhead", "hook_ns")),
    ("stock and instrumented, {} rounds of", at("overhead", "servers/rounds")),
    ("rounds of {} requests: ", rows("overhead", part="servers", kind="round")[0]["requests"]),
    (
        "requests: {} % ({} … {}) of the tokens",
        at("overhead", "servers/throughput_loss_percent"),
        *at("overhead", "servers/throughput_loss_percent_ci95"),
    ),
    (
        "**No token differs**: {} tokens",
        sum(row["tokens_compared"] for row in TOKENS if row["setting"] != "off"),
    ),
    (
        "{} of them were also compared",
        at("overhead", "tokens_compared_with_stock") - OF_TWO["tokens_compared"],
    ),
    ("and {} with TP 2 on one GPU", OF_TWO["tokens_compared"]),
    ("**Reading** a sampled step takes {} µs", at("overhead", "harvest_us/sampled")),
    ("a step that is not sampled takes {} µs on average", at("overhead", "harvest_us/unsampled")),
    ("did not grow over {} sampled steps", at("overhead", "memory_growth_kib/every_step/steps")),
]  # fmt: skip

# Where CuPy's memory was told apart: a machine's first start, twice, and a later one.
FIRST_STARTS = [at("overhead", f"again/{run}/resident_mib/paired/total") for run in (1, 2)]
LATER_START = at("overhead", "again/1/resident_mib/default")
PLANS = at("overhead", "again/*/resident_mib/paired/plan")
CAPTURES = [*at("overhead", "again/*/resident_mib/paired/capture"), LATER_START["capture"]]
(COMPILED,) = [row for row in rows("overhead", kind="plugin") if "compiler_mib" in row]
MEMORY = [
    ("**A model process is larger** by {} to {} MiB", min(FIRST_STARTS), max(FIRST_STARTS)),
    ("and by {} in a later one", LATER_START["total"]),
    ("(CuPy takes {} more", LATER_START["cupy"]),
    ("makes {} to {} of the difference", min(PLANS), max(PLANS)),
    ("of the difference: {} are its library", COMPILED["compiler_mib"]["plan"]),
    ("its library, {} it leaves behind", COMPILED["anonymous_mib"]["plan"]),
    ("The instrumented graphs are {} to {} MiB", min(CAPTURES), max(CAPTURES)),
]  # fmt: skip

AHEAD = {name: moved("links", variant=name, mode="eager_ahead") for name in ("nccl_nvlink", "nccl_pcie", "custom")}
APART, OWN = (at(name, "slow_groups/a GPU each") for name in ("collectives", "collectives-own"))
RANKS = [
    ("that is at most {} µs of {} µs and", AHEAD["nccl_nvlink"][1], AHEAD["nccl_nvlink"][0]),
    ("µs and {} of {} µs over NVLink", AHEAD["custom"][1], AHEAD["custom"][0]),
    ("over NVLink, and {} of {} µs through host memory", AHEAD["nccl_pcie"][1], AHEAD["nccl_pcie"][0]),
    ("a delay moved it by up to {} % there", at("superseded/links-quick-hosts", "slow_rank/eager/transfer_shift_percent")),
    ("move transfer by {} % beyond the noise", APART["transfer_shift_percent"]),
    ("and by {} % with LightLLM's own all_reduce", OWN["transfer_shift_percent"]),
    ("all_reduce ({} of {} µs, noise included)", *reversed(moved("collectives-own", mode="eager"))),
    (
        "name the right rank in {} % of {} steps each",
        min(at(name, "straggler_named_percent") for name in ("collectives", "collectives-own")),
        min(each["slow_steps"] for each in (APART, OWN)),
    ),
    ("but delays move transfer by {} %", at("collectives", "slow_groups/one GPU/transfer_shift_percent")),
]  # fmt: skip

UNTOUCHED = [abs(each) for each in at("analysis", "slowed/10/prefill/others/*/estimate_percent")]
OTHERS = [
    ("operators that nobody touched read {} to {} % faster", min(UNTOUCHED), max(UNTOUCHED)),
    ("the other does not, {} rounds of each", at("tracing", "blocks")),
    ("The aim was {} % with one request in ten", at("tracing", "target_percent_at_10")),
    ("All {} traces were complete", at("tracing", "traced_requests")),
    ("left out {} spans of steps", at("tracing", "spans_dropped")),
    ("all {} links of {} sampled steps were right", at("tracing", "checked_links"), at("tracing", "checked_steps")),
]

# Theory, as the page's tables have it.
RATIOS = column("docs/original-analysis.md", "ratios", "ratio")
PAYLOADS = column("docs/original-analysis.md", "latency", "payload").values()
THEORY = [
    ("theory allows {} in compute and {} between the links", RATIOS["FLOP/s"], RATIOS["NVLink of a card"]),
    ("and set it against {}. *To be corrected:*", RATIOS["FLOP/s"]),
    ("* {} compares the NVLinks of single cards", RATIOS["NVLink of a card"]),
    ("lies below {} as an A40 that comes nearer", RATIOS["memory bandwidth"]),
    ("these calls move {} to {} MB", min(PAYLOADS), max(PAYLOADS)),
]

HIDDEN = at("launching", "hidden")
BLOCKING = [100 * (each["blocking"]["step_ms"] / each["as it is"]["step_ms"] - 1) for each in HIDDEN.values()]
SPREADS = [
    50 * (row["step_ms_ci95"][1] - row["step_ms_ci95"][0]) / row["step_ms"]
    for row in rows("launching", part="hidden", kind="phase", phase="decode")
]
UP_TO_4096 = [HIDDEN[size]["as it is"]["step_ms"] for size in ("1024", "2048", "4096")]
NVLINK, HOST_MEMORY = (at(f"accuracy-tp2{way}", "transfer/llama-7b, batch 64/cupti_us") for way in ("", "-no-p2p"))
ONE, TWO = (at("scaling", f"groups/{group}/operators/decode") for group in ("tp1", "tp2"))
CALL = at("scaling", "groups/tp2/decode")
ORIGINAL = [
    ("its step takes the same {} to {} ms", min(UP_TO_4096), max(UP_TO_4096)),
    ("Blocking launches add {} to {} %", min(BLOCKING), max(BLOCKING)),
    (
        "make {} % of the bandwidth out of {} % at 4096",
        HIDDEN["4096"]["blocking"]["mbu_percent"],
        HIDDEN["4096"]["as it is"]["mbu_percent"],
    ),
    ("intervals of ±{} to ±{} %", min(SPREADS), max(SPREADS)),
    ("takes {} µs over NVLink and {} µs through the host's memory", NVLINK, HOST_MEMORY),
    ("a ratio of {}, less than half of", HOST_MEMORY / NVLINK),
    (
        "**Prefill** does what theory allows, {} times of {}",
        at("scaling", "speedup/tp1 to tp2/prefill/step/measured"),
        at("scaling", "speedup/tp1 to tp2/prefill/step/theory"),
    ),
    (
        "**Decode** gains {} times, where theory allows {}",
        at("scaling", "speedup/tp1 to tp2/decode/step/measured"),
        at("scaling", "speedup/tp1 to tp2/decode/step/theory"),
    ),
    ("(`gap`, {} and {} ms)", ONE["gap"]["us"] / 1e3, TWO["gap"]["us"] / 1e3),
    ("and sampling ({} ms)", ONE["sampling"]["us"] / 1e3),
    (
        "are {} % of the step on one card and {} % on two",
        *(each["gap"]["percent"] + each["sampling"]["percent"] for each in (ONE, TWO)),
    ),
    ("keys and values ({} µs a layer)", TWO["kv_write"]["us"] / at("scaling", "layers/0")),
    ("**all_reduce** takes {} µs for {} MB in decode", CALL["transfer_us"], CALL["payload_bytes"] / 1e6),
    (
        "of the step's mean is {} … {} ms",
        *rows("launching", part="lengths", kind="phase", phase="decode", input_len=256)[0]["step_ms_ci95"],
    ),
]  # fmt: skip

BOUND = {
    "docs/measured.md": [*ACCURACY, *TWO_RANKS, *COST, *MEMORY, *RANKS, *OTHERS],
    "docs/original-analysis.md": [*ORIGINAL, *THEORY],
}
