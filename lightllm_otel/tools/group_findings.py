"""Findings of ``lightllm-otel doctor`` on the groups of ranks that have rings on this machine."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lightllm_otel.contracts.table import FIELDS, HOOKS
from lightllm_otel.records.folder import RING_PATTERN, is_locked
from lightllm_otel.records.reader import RingReader, rings_in
from lightllm_otel.records.vocabulary import Level, StepOnlyReason
from lightllm_otel.tools.contract_table import place
from lightllm_otel.tools.exporter_findings import exporter
from lightllm_otel.tools.finding import NOTE, OK, WRONG, Finding, guarded
from lightllm_otel.tools.layer_findings import operators
from lightllm_otel.tools.scrape import addresses, directories, folders, refused

_ONLY_TOTAL = "have only their total time"
_STEP_ONLY = {
    StepOnlyReason.NOT_INSTRUMENTED: f"sampled decode steps {_ONLY_TOTAL}: their batch size has no instrumented graph "
                                     "(LIGHTLLM_OTEL_GRAPH_MIB, LIGHTLLM_OTEL_GRAPH_SECONDS)",
    StepOnlyReason.OVERLAP: f"sampled steps of two overlapping microbatches {_ONLY_TOTAL}",
    StepOnlyReason.DRAFT: "forwards of draft models: their time is `other` in the step of the main model",
    StepOnlyReason.PREFILL_GRAPH: f"sampled prefill steps {_ONLY_TOTAL}: Python sees only attention in a prefill graph",
}  # fmt: skip


def groups(remote: bool) -> list[Finding]:
    """Return the findings on every group that has a ring on this machine. ``remote``: see :func:`.doctor.doctor`."""
    known = addresses()
    with_rings = [folder for folder in folders() if any(folder.glob(RING_PATTERN))]
    findings = [
        Finding(WRONG if directory == directories()[0] else NOTE, "folder", problem, "set LIGHTLLM_OTEL_DIR to another folder")
        for directory, problem in refused().items()
    ]  # fmt: skip
    for folder in sorted(set(with_rings)):
        found, strays = rings_in(folder)
        rings = [path for _, path in found]
        findings += [
            Finding(NOTE, "ring", f"{path} is not read: the ring of a rank is named rank-N.ring", f"rm {path}")
            for path in strays
        ]
        alive = [path for path in rings if is_locked(path)]
        if not alive:
            findings.append(
                Finding(NOTE, "server", f"{folder.name}: ended; its ring is still there", f"rm -r {folder}")
            )
            continue
        findings.append(Finding(OK, "server", f"{folder.name}: {len(alive)} of {len(rings)} ranks alive"))
        for path in alive:
            findings += guarded(path.name, functools.partial(rank, path))
        findings += guarded("exporter", functools.partial(exporter, folder, known.get(folder.name), remote))
    if not with_rings:
        findings.append(
            Finding(NOTE, "server", f"no server with the plugin on this machine (looked in {directories()[0]})")
        )
    return findings


def rank(path: Path) -> list[Finding]:
    """Return the findings on one rank, from its ring."""
    try:
        reader = RingReader(path)
    except (OSError, ValueError) as error:
        return [Finding(WRONG, "ring", str(error), "restart the server")]
    header, facts = reader.header, reader.facts()
    name = path.stem
    findings = [
        Finding(OK, name, f"{facts.get('model')} on {facts.get('gpu_name') or 'the CPU'}, LightLLM {facts.get('lightllm')}, "
                f"torch {facts.get('torch')}, cupy {facts.get('cupy') or 'none'}"),
        Finding(OK, name, f"clock {facts.get('clock')} {facts.get('clock_detail')}: resolution "
                f"{1e9 * float(header['clock_quantum']):.0f} ns, a boundary costs {1e6 * float(header['boundary_cost']):.2f} µs; "
                f"{int(header['steps'])} steps, {int(header['sampled_steps'])} sampled"),
    ]  # fmt: skip
    findings += graphs(name, facts.get("graphs") or {}, header)
    findings += operators(name, facts)
    findings += contracts(name, facts.get("contracts") or {})
    findings += [Finding(WRONG, name, sentence) for sentence in facts.get("problems") or ()]
    findings += [Finding(NOTE, name, sentence) for sentence in facts.get("notes") or ()]
    if int(header["control_seq"]):
        findings.append(Finding(NOTE, name, f"live control: {Level.of(int(header['level']))}, one decode step in "
                                f"{int(header['sample_every'])}, since forward {int(header['control_at'])}"))  # fmt: skip
    for label, values in (("errors", header["errors"]), ("dropped", header["dropped"])):
        if values.sum():
            what = f"{int(values.sum())} {label}; /metrics has them by kind"
            findings.append(Finding(WRONG, name, what, "search the server's log for lightllm-otel, and report it"))
    return findings


def graphs(name: str, found: dict[str, Any], header: Any) -> list[Finding]:
    """Return the findings on CUDA graphs: which batch sizes have an instrumented graph, and why the others have none."""
    state, reason = found.get("state"), found.get("reason")
    findings = []
    if state == "armed":
        what = (
            f"CUDA graphs: {len(found['sizes'])} of {found.get('host_sizes') or len(found['sizes'])} batch sizes have an "
            f"instrumented graph, {found['bytes'] / 2**20:.0f} MiB, captured and checked in "
            f"{found['seconds']:.1f} s; {found['timestamps']}: resolution {1e9 * float(header['stamp_quantum']):.0f} ns, "
            f"a boundary costs {1e6 * float(header['stamp_cost']):.2f} µs"
        )
        findings.append(Finding(OK, name, what))
    elif state == "refused":
        remedy = "--disable_cudagraph shows operators anyway; LIGHTLLM_OTEL_GRAPHS=off accepts step-level times"
        findings.append(Finding(WRONG, name, f"CUDA graphs: step-level times only: {reason}", remedy))
    elif state:
        findings.append(Finding(NOTE, name, f"CUDA graphs: step-level times only: {reason}"))
    counts = {why: int(header["step_only"][why.code]) for why in StepOnlyReason}
    findings += [Finding(NOTE, name, f"{count} {_STEP_ONLY[why]}") for why, count in counts.items() if count]
    return findings


def contracts(name: str, found: dict[str, Any]) -> list[Finding]:
    """Return a finding for each feature that is lost because this LightLLM lacks something or has it in an unknown form."""
    rows = {row.name: row for row in (*HOOKS, *FIELDS)}
    findings = []
    for feature, sentences in (found.get("lost") or {}).items():
        why = [
            f"{place(rows[row])}: {state}"
            for row, state in (found.get("rows") or {}).items()
            if row in rows and rows[row].feature.value == feature
        ]
        what = f"not measured on this LightLLM: {feature} ({'; '.join(sentences)})"
        findings.append(Finding(NOTE, name, what, "; ".join(why)))
    return findings
