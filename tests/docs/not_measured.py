"""Figures in the prose of documents that no result has: pieces of sentences, by the reason and the document."""

EXAMPLE = [
    "rank 3 arrived last in 92 % of the collectives",
    "its ffn is 6 % slower in decode",
    "thermal throttling for 52 s",
]

REASONS = {
    "an example, and the sentence says so": {
        "README.md": EXAMPLE,
        "README.zh-CN.md": EXAMPLE,
        "docs/commands.md": EXAMPLE,
        "docs/metrics.md": [*EXAMPLE, "1.05 is 5 % slower, at any load"],
    },
    "a version": {
        "README.md": ["Python from 3.9 on"],
        "README.zh-CN.md": ["Python 3.9 及以上"],
        "docs/alerts.md": ["Prometheus 2.42 (Debian bookworm) and 3.5"],
        "docs/commands.md": ["Python 3.9 or newer"],
        "docs/dashboards.md": ["11.1 and later"],
        "docs/deployment.md": ["Python 3.9 or newer"],
        "docs/limits.md": ["Prometheus 2.42 and 3.5"],
        "docs/metrics.md": ["DeepSeek 3.2", "up to 3.7 must be started", "tested with 3.5"],
        "docs/traces.md": ["opentelemetry-sdk 1.28", "at 1.26, which"],
    },
    "a setting or a limit that the code or the rules have": {
        "README.md": ["(256 MiB and 5 s by default)"],
        "README.zh-CN.md": ["（默认 256 MiB 和 5 s）"],
        "docs/alerts.md": [
            "every 15 to 30 seconds",
            "on the GPU for 20 s",
            "over 2 minutes 12 % or 6 spreads, over 10 minutes 6 % or 5, over 30 minutes 2.5 % or 3",
            "with 15, 8 and 5 %",
            "the limit of 2.5 % over 30 minutes",
            "with 3 % or 4 spreads over 30 minutes",
            "so these became 2.5 % and 3",
        ],
        "docs/analysis.md": [
            "interval: 95 %",
            "above +5 % (`-5%`: below −5 %)",
            "by more than 1 %",
            "batch 20, 1024 tokens in, 1024 out",
            "over 1 KiB to 1 GiB",
        ],
        "docs/deployment.md": [
            "takes 4 MiB of `/dev/shm`",
            "port 8080, Grafana on 3000, Prometheus on 9090, Alertmanager on 9093",
        ],
        "docs/limits.md": ["each prefill of 512 tokens"],
        "docs/metrics.md": [
            "halves in 10 seconds",
            "not answered for 10 seconds",
            "come after 5 seconds",
            "scale 3 (factor 1.09) if 160 buckets suffice",
            "Observations of 0 s",
        ],
        "docs/recording.md": ["up to 126 (50.5 ms)"],
        "docs/traces.md": ["limited to 1000 a second"],
    },
    "how a benchmark was run": {
        "docs/measured.md": [
            "requests of 1024 tokens in and 64 out",
            "TP 2, batch 64, 1024 tokens in",
            "Delays of 5 to 20 ms",
            "batch 20, 1024 tokens in, with 95 % intervals",
            "and with 10 % operators that nobody touched",
            "a queue of 65,536",
            "The limit of 1000 spans a second",
        ],
        "docs/original-analysis.md": [
            "any hidden size up to 4096",
            "From 1024 to 4096 a layer",
            "Only at 8192 does",
            "of the bandwidth out of 22.6 % at 4096",
            "of one here at 4096",
            "(At 256 tokens",
        ],
    },
    "assumed or put into the simulation of the alerts": {
        "docs/alerts.md": [
            "scraped every 30 s",
            "over hours (0.5 % each)",
            "of 1 % at least",
            "after a deploy (4 %)",
            "at each load (0.7 %)",
            "the drift (0.02 % a day)",
            "a stuck step's every 15 s",
            "a step of 5 % was missed",
            "of all operators by 25 %",
        ],
    },
    "a data sheet's": {
        "docs/metrics.md": ["the NVLink of a pair carries 112.5 GB/s"],
        "docs/original-analysis.md": ["(600 GB/s against 112.5 GB/s)"],
    },
    "what the original analysis did, said or measured": {
        "docs/original-analysis.md": [
            "with 1024 tokens in and 1024 out",
            "it measured 1.72 for the",
            "decode at *only 15 %*",
            "The measured 1.72 lies",
        ],
    },
    "arithmetic on data sheets": {"docs/original-analysis.md": ["its bytes need less than 1 µs"]},
    # They may be right, but nobody can say so: the next run of the benchmark should record them.
    "seen or estimated, but no result was kept": {
        "docs/deployment.md": ["100 files made and removed a second"],
        "docs/original-analysis.md": ["some 0.3 µs a call too long"],
    },
}

# Pages whose figures another test computes.
COMPUTED = {"docs/fleet.md": "tests/deploy/test_fleet_page.py"}
