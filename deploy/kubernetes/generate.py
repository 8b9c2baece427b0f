"""Write what follows from other files: ``python deploy/kubernetes/generate.py``.

``prometheusrule.yaml`` from the plain rules in grafana/rules, which promtool tests; ``grafana/kustomization.yaml``, one
ConfigMap per dashboard (kubectl keeps what it applied in an annotation of at most 256 KiB).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
GRAFANA = HERE.parents[1] / "grafana"
HEAD = "# Made by deploy/kubernetes/generate.py; do not edit.\n"


def rule(folder: Path) -> dict[str, Any]:
    """The groups of all rules files (not of their tests) as one object."""
    files = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yml"))]
    groups = [group for file in files for group in (file or {}).get("groups", [])]
    return {
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "lightllm-otel"},
        "spec": {"groups": groups},
    }  # fmt: skip


def dashboards(folder: Path) -> dict[str, Any]:
    """A kustomization, in a folder that has the files in it: kustomize reads none from outside."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "configMapGenerator": [
            {"name": path.stem, "files": [f"{folder.name}/{path.name}"]} for path in sorted(folder.glob("*.json"))
        ],
        "generatorOptions": {
            "disableNameSuffixHash": True,
            "labels": {"grafana_dashboard": "1"}, "annotations": {"grafana_folder": "LightLLM"},
        },
    }  # fmt: skip


def files() -> dict[Path, str]:
    made = {
        HERE / "prometheusrule.yaml": rule(GRAFANA / "rules"),
        GRAFANA / "kustomization.yaml": dashboards(GRAFANA / "dashboards"),
    }
    return {
        path: HEAD + yaml.safe_dump(each, sort_keys=False, width=120, allow_unicode=True) for path, each in made.items()
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
