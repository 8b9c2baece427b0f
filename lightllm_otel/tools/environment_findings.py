"""Findings of ``lightllm-otel doctor`` on this shell and this Python: the hook, the settings, the installed versions."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import threading
from pathlib import Path

from lightllm_otel import __version__
from lightllm_otel.installation import install_command
from lightllm_otel.settings import PREFIX, SETTINGS, Settings, shown
from lightllm_otel.tools.finding import NOTE, OK, WRONG, Finding

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


def hook(running: bool) -> list[Finding]:
    """Return whether Python processes started here would load the plugin. ``running``: a server with the plugin is running."""
    files = [Path(entry) / "lightllm_otel_boot.pth" for entry in sys.path if entry]
    starts = [path for path in files if path.exists() and _is_site_folder(path.parent)]
    launched = any("lightllm_otel" in entry and entry.endswith("launcher") for entry in sys.path)
    if starts or launched:
        where = f"through {starts[0]}" if starts else "through lightllm-otel run"
        return [Finding(OK, "hook", f"{where}; {'no_site' if sys.flags.no_site else 'site is on'}")]
    missing = f"the site folders of {sys.executable} have no lightllm_otel_boot.pth"
    if running:  # started by lightllm-otel run, or by another Python
        return [Finding(NOTE, "hook", f"{missing}. The running server is measured, but a server that you start with this Python "
                        "is not, unless you start it with: lightllm-otel run -- python -m …")]  # fmt: skip
    return [Finding(WRONG, "hook", f"{missing}: a server that is started with this Python is not measured",
                    "start the server with: lightllm-otel run -- python -m …; or install the file into this Python with: "
                    + install_command())]  # fmt: skip


def _is_site_folder(folder: Path) -> bool:
    import site

    return str(folder) in {*site.getsitepackages(), site.getusersitepackages()}


def settings(running: bool) -> list[Finding]:
    """Return findings on the variables of this shell. A running server has its own, and reports problems with them itself."""
    read = Settings.from_env(os.environ)
    given = shown(os.environ.get(PREFIX, "").strip())
    findings = [
        Finding(OK, "switch", f"{PREFIX}={given}") if read.enabled
        else Finding(NOTE, "switch", f"{PREFIX} is {given or 'empty'}: a server started here is not measured",
                     f"start it with {PREFIX}=1")
    ]  # fmt: skip
    findings += [Finding(NOTE if running else WRONG, "setting", problem) for problem in read.problems]
    findings += [Finding(NOTE, "setting", note) for note in read.notes]
    reported = (*read.problems, *read.notes)
    for setting in SETTINGS:
        value = os.environ.get(setting.variable)
        if value and not any(sentence.startswith(setting.variable + "=") for sentence in reported):
            findings.append(
                Finding(OK, "setting", f"{setting.variable}={shown(value)} (default: {setting.default or 'empty'})")
            )
    return findings


def versions() -> list[Finding]:
    """Return findings on the installed versions, without importing the packages."""
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
                                "nvidia-smi and dmesg show whether the driver has lost a GPU"))  # fmt: skip
    if "lightllm" not in found:
        findings.append(Finding(NOTE, "lightllm", "not installed in this Python (a checkout on PYTHONPATH is fine)"))
    if found["driver"] and not any(name.startswith("cupy") for name in found):
        findings.append(Finding(NOTE, "cupy", "not installed: the plugin uses torch's CUDA events, which take more CPU time",
                                f"{install_command('cuda12')} (cuda13 for CUDA 13)"))  # fmt: skip
    return findings


def driver() -> str:
    """Return the version of the NVIDIA driver: empty if there is none, :data:`HANGS` if NVML does not answer."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(_driver()), daemon=True)  # NVML can hang on a lost GPU
    thread.start()
    thread.join(DRIVER_SECONDS)
    return answers[0] if answers else HANGS


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except Exception:  # noqa: BLE001 - no driver, no library or no permission: all count as no driver
        return ""
    return version.decode() if isinstance(version, bytes) else str(version)
