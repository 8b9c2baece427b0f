"""``lightllm-otel doctor``: what is active here, what is missing, and how to mend it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightllm_otel import __version__
from lightllm_otel.contracts.table import FIELDS, HOOKS, Field, Hook
from lightllm_otel.installation import install_command
from lightllm_otel.records.folder import LOCK_NAME, RING_PATTERN, is_locked
from lightllm_otel.records.reader import RingReader, rings_in
from lightllm_otel.records.vocabulary import ExporterStage, Level, StepOnlyReason
from lightllm_otel.settings import PREFIX, SETTINGS, Settings, shown
from lightllm_otel.tools import layers
from lightllm_otel.tools.finding import NOTE, OK, WRONG, Finding
from lightllm_otel.tools.scrape import NoExporter, Scrape, addresses, directories, fetch, folders, refused
from lightllm_otel.tools.straggler import straggler
from lightllm_otel.tools.table import table

DRIVER_SECONDS, HANGS = 5.0, "does not answer"
PACKAGES = (
    "lightllm",
    "torch",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "prometheus-client",
    "opentelemetry-sdk",
    "numpy",
    "wrapt",
)


_WHOLE = {
    StepOnlyReason.NOT_INSTRUMENTED: "decode steps were due and have their whole time only: their batch size has no "
                   "instrumented graph (LIGHTLLM_OTEL_GRAPH_MIB, LIGHTLLM_OTEL_GRAPH_SECONDS)",
    StepOnlyReason.OVERLAP: "steps of two overlapping microbatches were due and have their whole time only",
    StepOnlyReason.DRAFT: "forwards of draft models: their time is `other` in the step of the model that they draft for",
    StepOnlyReason.PREFILL_GRAPH: "prefill steps were due and have their whole time only: Python sees attention alone in them",
}  # fmt: skip


def doctor(as_json: bool, remote: bool) -> int:
    """0 when nothing is wrong, else 1."""
    servers = apart("servers", lambda: groups(remote))
    measured = any((finding.state, finding.about) == (OK, "server") for finding in servers)
    findings = [
        *apart("hook", lambda: hook(measured)), *apart("settings", lambda: settings(measured)), *apart("versions", versions),
        *servers,
    ]  # fmt: skip
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        print("\n".join(lines(findings)))
    return int(any(finding.state == WRONG for finding in findings))


def apart(about: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what ``look`` finds; one finding where it fails, so that the others are shown all the same."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - a file that it looks at may hold anything
        return [Finding(WRONG, about, f"cannot be looked at: {error!r}", "please report this")]


def lines(findings: Iterable[Finding]) -> list[str]:
    rows: list[list[str]] = []
    for each in findings:
        rows.append([each.state, each.about, each.what])
        if each.remedy:
            rows.append(["", "", f"→ {each.remedy}"])
    return table(rows, "<<<", (4, 10))


def hook(measured: bool) -> list[Finding]:
    """Return whether Python processes started here would start us. ``measured``: a server with the plugin is running."""
    files = [Path(entry) / "lightllm_otel_boot.pth" for entry in sys.path if entry]
    starts = [path for path in files if path.exists() and _is_site_folder(path.parent)]
    launched = any("lightllm_otel" in entry and entry.endswith("launcher") for entry in sys.path)
    if starts or launched:
        where = f"through {starts[0]}" if starts else "through lightllm-otel run"
        return [Finding(OK, "hook", f"{where}; {'no_site' if sys.flags.no_site else 'site is on'}")]
    missing = f"no .pth file of ours in the site folders of {sys.executable}"
    if measured:  # by lightllm-otel run, or with another Python
        return [Finding(NOTE, "hook", f"{missing}. The running server is measured all the same; the next one that is started "
                        "from this Python is only measured with: lightllm-otel run -- python -m …")]  # fmt: skip
    return [Finding(WRONG, "hook", f"{missing}: a server that is started from it is not measured",
                    "start the server with: lightllm-otel run -- python -m …; or bring the file into this Python with: "
                    + install_command())]  # fmt: skip


def _is_site_folder(folder: Path) -> bool:
    import site

    return str(folder) in {*site.getsitepackages(), site.getusersitepackages()}


def settings(measured: bool) -> list[Finding]:
    """Return findings on the variables of this shell; a running server has its own, and says itself what is wrong with them."""
    read = Settings.from_env(os.environ)
    given = shown(os.environ.get(PREFIX, "").strip())
    findings = [
        Finding(OK, "switch", f"{PREFIX}={given}") if read.enabled
        else Finding(NOTE, "switch", f"{PREFIX} is {given or 'empty'}: a server started here is not measured",
                     f"start it with {PREFIX}=1")
    ]  # fmt: skip
    findings += [Finding(NOTE if measured else WRONG, "setting", problem) for problem in read.problems]
    findings += [Finding(NOTE, "setting", note) for note in read.notes]
    told = (*read.problems, *read.notes)
    for setting in SETTINGS:
        value = os.environ.get(setting.variable)
        if value and not any(sentence.startswith(setting.variable + "=") for sentence in told):
            findings.append(
                Finding(OK, "setting", f"{setting.variable}={shown(value)} (default: {setting.default or 'empty'})")
            )
    return findings


def versions() -> list[Finding]:
    """Installed versions, without importing any of it."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["driver"] = version = driver()
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    findings = [Finding(OK, "versions", f"lightllm-otel {__version__}, python {sys.version.split()[0]}, {text}")]
    if version == HANGS:
        findings.append(Finding(WRONG, "driver", f"NVML has not answered for {DRIVER_SECONDS:g} s",
                                "nvidia-smi and dmesg show whether a GPU is lost"))  # fmt: skip
    if "lightllm" not in found:
        findings.append(Finding(NOTE, "lightllm", "not installed in this Python (a checkout on PYTHONPATH is fine)"))
    if found["driver"] and not any(name.startswith("cupy") for name in found):
        findings.append(Finding(NOTE, "cupy", "not installed: torch's events are used, each a little dearer on the CPU",
                                f"{install_command('cuda12')} (cuda13 for CUDA 13)"))  # fmt: skip
    return findings


def driver() -> str:
    """Return the NVIDIA driver's version; empty where there is none, :data:`HANGS` where it does not say."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(_driver()), daemon=True)  # a lost GPU makes NVML hang
    thread.start()
    thread.join(DRIVER_SECONDS)
    return said[0] if said else HANGS


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except Exception:  # noqa: BLE001 - no driver, no library, no permission: all the same here
        return ""
    return version.decode() if isinstance(version, bytes) else str(version)


def groups(remote: bool) -> list[Finding]:
    """Every group of ranks that has a ring on this machine."""
    known = addresses()
    with_rings = [folder for folder in folders() if any(folder.glob(RING_PATTERN))]
    findings = [
        Finding(WRONG if directory == directories()[0] else NOTE, "folder", problem, "LIGHTLLM_OTEL_DIR names another one")
        for directory, problem in refused().items()
    ]  # fmt: skip
    for folder in sorted(set(with_rings)):
        found, strays = rings_in(folder)
        rings = [path for _, path in found]
        findings += [
            Finding(
                NOTE, "ring", f"{path} is no ring of a rank, whose name is rank-N.ring; nobody reads it", f"rm {path}"
            )
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
            findings += apart(path.name, functools.partial(rank, path))
        findings += apart("exporter", functools.partial(exporter, folder, known.get(folder.name), remote))
    if not with_rings:
        findings.append(
            Finding(NOTE, "server", f"no server with the plugin on this machine (looked in {directories()[0]})")
        )
    return findings


def rank(path: Path) -> list[Finding]:
    try:
        reader = RingReader(path)
    except (OSError, ValueError) as error:
        return [Finding(WRONG, "ring", str(error), "restart the server")]
    header, facts = reader.header, reader.facts()
    name = path.stem
    findings = [
        Finding(OK, name, f"{facts.get('model')} on {facts.get('gpu_name') or 'the CPU'}, LightLLM {facts.get('lightllm')}, "
                f"torch {facts.get('torch')}, cupy {facts.get('cupy') or 'none'}"),
        Finding(OK, name, f"clock {facts.get('clock')} {facts.get('clock_detail')}: quantum "
                f"{1e9 * float(header['clock_quantum']):.0f} ns, a boundary costs {1e6 * float(header['boundary_cost']):.2f} µs; "
                f"{int(header['steps'])} steps, {int(header['sampled_steps'])} sampled"),
    ]  # fmt: skip
    findings += graphs(name, facts.get("graphs") or {}, header)
    findings += layers.operators(name, facts)
    findings += contracts(name, facts.get("contracts") or {})
    findings += [Finding(WRONG, name, sentence) for sentence in facts.get("problems") or ()]
    findings += [Finding(NOTE, name, sentence) for sentence in facts.get("notes") or ()]
    if int(header["control_seq"]):
        findings.append(Finding(NOTE, name, f"live control: {Level.of(int(header['level']))}, one decode step in "
                                f"{int(header['sample_every'])}, since forward {int(header['control_at'])}"))  # fmt: skip
    for label, values in (("errors", header["errors"]), ("dropped", header["dropped"])):
        if values.sum():
            what = f"{int(values.sum())} {label}; /metrics says of what kind"
            findings.append(Finding(WRONG, name, what, "look for lightllm-otel in the server's log, and report it"))
    return findings


def graphs(name: str, found: dict[str, Any], header: Any) -> list[Finding]:
    """Findings on CUDA graphs: which have an instrumented one beside them, and why the others have whole steps only."""
    state, reason = found.get("state"), found.get("reason")
    findings = []
    if state == "armed":
        what = (
            f"CUDA graphs: {len(found['sizes'])} of {found.get('host_sizes') or len(found['sizes'])} batch sizes have an "
            f"instrumented one beside them, {found['bytes'] / 2**20:.0f} MiB, captured and checked in "
            f"{found['seconds']:.1f} s; {found['timestamps']}: quantum {1e9 * float(header['stamp_quantum']):.0f} ns, "
            f"a boundary costs {1e6 * float(header['stamp_cost']):.2f} µs"
        )
        findings.append(Finding(OK, name, what))
    elif state == "refused":
        remedy = "--disable_cudagraph shows operators all the same; LIGHTLLM_OTEL_GRAPHS=off accepts whole steps"
        findings.append(Finding(WRONG, name, f"CUDA graphs: whole steps only: {reason}", remedy))
    elif state:
        findings.append(Finding(NOTE, name, f"CUDA graphs: whole steps only: {reason}"))
    counts = {why: int(header["whole"][why.code]) for why in StepOnlyReason}
    findings += [Finding(NOTE, name, f"{count} {_WHOLE[why]}") for why, count in counts.items() if count]
    return findings


def contracts(name: str, found: dict[str, Any]) -> list[Finding]:
    """Findings for what this LightLLM does not have, or has in another form than is known; a line for each feature."""
    rows = {row.name: row for row in (*HOOKS, *FIELDS)}
    findings = []
    for feature, sentences in (found.get("lost") or {}).items():
        why = [
            f"{_place(rows[row])}: {state}"
            for row, state in (found.get("rows") or {}).items()
            if row in rows and rows[row].feature.value == feature
        ]
        what = f"not measured on this LightLLM: {feature} ({'; '.join(sentences)})"
        findings.append(Finding(NOTE, name, what, "; ".join(why)))
    return findings


def _place(row: Hook | Field) -> str:
    return row.place if isinstance(row, Hook) else f"{row.owner}.{', '.join(row.attributes)}"


def contract_table() -> int:
    """Print every place where the plugin touches or reads LightLLM; with the state of a row in a server that runs here."""
    states: dict[str, str] = {}
    for folder in folders():
        for _, path in rings_in(folder)[0]:
            with contextlib.suppress(OSError, ValueError):  # doctor names such a ring
                if is_locked(path):
                    found = RingReader(path).facts().get("contracts") or {}
                    states.update(found.get("rows") or {})
    rows = []
    for row in (*HOOKS, *FIELDS):
        rows.append([row.feature.value, _place(row), f"{row.since} … {row.until}"])
        if row.name in states:
            rows.append(["", f"here: {states[row.name]}; then {row.loses}"])
    print("\n".join(table(rows, "<<<", (14, 70))))
    return 0


def exporter(folder: Path, url: str | None, remote: bool) -> list[Finding]:
    if not is_locked(folder / LOCK_NAME):
        return [Finding(WRONG, "exporter", f"none runs for {folder.name}; see {folder / 'exporter.log'}",
                        f"lightllm-otel exporter --folder {folder} --detach")]  # fmt: skip
    if url is None:
        return [Finding(WRONG, "exporter", f"runs, but has no address; see {folder / 'exporter.log'}",
                        "set LIGHTLLM_OTEL_PORT to a free port and restart the server")]  # fmt: skip
    try:
        scrape: Scrape = fetch(url)
    except NoExporter as problem:
        return [Finding(WRONG, "exporter", str(problem), "restart it: kill its process, the server starts another")]
    age = scrape.value("lightllm_otel_data_age_seconds")
    findings = [Finding(OK, "exporter", f"{url}, oldest unread step {age:.1f} s"), *failures(scrape, folder)]
    if refused := scrape.value("lightllm_otel_export_errors_total"):
        findings.append(Finding(WRONG, "otlp", f"{refused:.0f} batches did not arrive; why: {folder / 'exporter.log'}",
                                "look at the collector, or at OTEL_EXPORTER_OTLP_ENDPOINT"))  # fmt: skip
    late = straggler(scrape)
    findings += [Finding(NOTE, "ranks", late)] if late else []
    if url.split("//")[1].startswith(("127.", "localhost", "[::1]")):
        findings.append(
            Finding(
                WRONG if remote else NOTE,
                "exporter",
                "listens on this machine only",
                "for a Prometheus elsewhere restart the server with LIGHTLLM_OTEL_HOST=0.0.0.0",
            )
        )
    return findings


def failures(scrape: Scrape, folder: Path) -> list[Finding]:
    """Parts of the exporter that have failed; those of the model processes are in their rings' headers."""
    stages = {stage.value for stage in ExporterStage}
    counted = {
        dict(labels)["stage"]: count
        for labels, count in scrape.samples.get("lightllm_otel_errors_total", {}).items()
        if count and dict(labels)["stage"] in stages
    }
    return [
        Finding(WRONG, "exporter", f"its part {stage} has failed {count:.0f} times; everything else goes on",
                f"why: {folder / 'exporter.log'}, or the server's log")
        for stage, count in sorted(counted.items())
    ]  # fmt: skip
