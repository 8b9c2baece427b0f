"""The alert that the READMEs show is the one that Prometheus would send."""

import re
from pathlib import Path

import pytest
import servers
from servers import LATE, Server, Target

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = re.compile(r"^```text\n(LightLLM\w+) \((\w+)\): (.*?)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# promtool begins in 1970, and the simulated GPUs have no identifiers of real ones.
TIMES_AND_GPUS = re.compile(r"(?<=Since )[^U]*(?=UTC)|GPU-[^.\s]+")


def sample(name):
    found = SAMPLE.search((ROOT / name).read_text())
    return found[1], found[2], found[3], TIMES_AND_GPUS.sub("…", " ".join(found[4].split()))


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_sample_is_what_the_rule_says(promtool, tmp_path, monkeypatch, readme):
    name, severity, summary, description = sample(readme)
    info = {"model": "llama-7b", "gpu": "NVIDIA H200", "torch": "2.8.0", "cuda": "12.8", "plugin": "0.1.0"}
    for label, value in info.items():
        monkeypatch.setitem(servers.INFO, label, value)
    target = Target(0, 46, {"instance": "gpu-07:9464"}, {"lightllm": "1.2.0"})
    server = Server(name="gpu-07", at=30, changed=LATE, minutes=46, targets=[target])
    path = tmp_path / "test.yml"
    servers.write(path, server.series(), ["  alert_rule_test:", "  - eval_time: 45m", f"    alertname: {name}"])
    said = TIMES_AND_GPUS.sub("…", servers.said(promtool, path))
    assert f'severity="{severity}"' in said
    assert f'summary="{summary}"' in said
    assert f'description="{description}"' in said
