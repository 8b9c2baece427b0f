"""The documented commands install the plugin beside what LightLLM pins and change nothing of it: pip's resolver says so.

The packages of LightLLM's environment are there by name and version alone, which is all that pip looks at.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lightllm_otel.installation import install_command

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
OFFLINE = (
    "Failed to establish a new connection",
    "Temporary failure in name",
    "Connection refused",
    "No matching distribution",
)
# Packages as they come to such an environment: editable, built in a folder that is gone, from a repository, from conda,
# another build of a version, and a version that is none.
ODD: list[tuple[str, str, dict[str, object] | None]] = [
    ("lightllm", "0.0.1", {"url": "file:///srv/lightllm", "dir_info": {"editable": True}}),
    ("flash-mla", "1.0.0+47c35a7", {"url": "file:///tmp/gone/FlashMLA", "dir_info": {}}),
    ("deep-ep", "1.2.1", {"url": "https://host.invalid/ep.git", "vcs_info": {"vcs": "git", "commit_id": "60d4403"}}),
    ("wrapt", "1.16.0", {"url": "file:///croot/wrapt_1674060999999/work", "dir_info": {}}),
    ("torchvision", "0.26.0+cu130", None),
    ("distro-info", "1.1build1", None),
]


def pins(file: str) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (HERE / file).read_text().splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def interpreter(version: str) -> Path:
    """Find a Python of this version, on PATH or among pyenv's. Skips the test where there is none."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(f"python{version}"), *sorted(root.glob(f"versions/{version}.*/bin/python"))]
    for python in filter(None, found):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return Path(python)
    pytest.skip(f"no Python {version} here")


@dataclasses.dataclass
class Environment:
    """A Python in which packages seem to be installed, and a ``pip`` that says what it would do to them."""

    folder: Path
    pip: list[str]
    wheel: Path
    environ: dict[str, str]
    there: set[str] = dataclasses.field(default_factory=set)

    def has(self, name: str, version: str, url: dict[str, object] | None = None) -> None:
        self.there.add(canonicalize_name(name))
        (packages,) = self.folder.glob("venv/lib/python*/site-packages")
        info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text("")
        if url is not None:
            (info / "direct_url.json").write_text(json.dumps(url))

    def installs(self, command: str) -> dict[str, str]:
        """Run a command of the documents as it stands, and return what pip would install: name → version."""
        shim, report = self.folder / "bin" / "pip", self.folder / "report.json"
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(
            f"#!{sys.executable}\nimport os, re, sys\nwords = sys.argv[1:]\n"
            "if words[0] == 'install':\n"
            f"    words = [re.sub('^lightllm-otel', {str(self.wheel)!r}, word) for word in words]\n"
            f"    words += ['--dry-run', '--quiet', '--report', {str(report)!r}]\n"
            f"os.execv({self.pip[0]!r}, [*{self.pip!r}, *words])\n"
        )
        shim.chmod(0o755)
        environ = {**self.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.folder, env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode and any(words in done.stderr for words in OFFLINE):
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr
        metadata = [item["metadata"] for item in json.loads(report.read_text())["install"]]
        return {canonicalize_name(each["name"]): each["version"] for each in metadata}


@pytest.fixture
def environment(
    request: pytest.FixtureRequest, wheel: Path, plain_environment: dict[str, str], tmp_path: Path
) -> Environment:
    """LightLLM's environment: a version of Python (None: this one, with its newer pip), and the file of what is pinned."""
    version, file = request.param
    python = Path(sys.executable) if version is None else interpreter(version)
    subprocess.run([python, "-I", "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    inside = str(tmp_path / "venv" / "bin" / "python")
    if version is None:
        made = Environment(tmp_path, [sys.executable, "-I", "-m", "pip", "--python", inside], wheel, plain_environment)
    else:
        code = "import ensurepip; print(ensurepip.__path__[0])"
        bundled = Path(subprocess.check_output([python, "-I", "-c", code], text=True).strip()) / "_bundled"
        pip = next(bundled.glob("pip-*.whl"), None)
        if pip is None:
            pytest.skip(f"{python} brings no pip")
        ZipFile(pip).extractall(tmp_path / "pip")
        environ = {**plain_environment, "PYTHONPATH": str(tmp_path / "pip")}
        made = Environment(tmp_path, [inside, "-m", "pip"], wheel, environ)
    for name, pinned in pins(file).items():
        made.has(name, pinned)
    for odd in ODD:
        made.has(*odd)
    return made


@pytest.mark.parametrize(
    ("environment", "cuda"),
    [
        (("3.9", "lightllm-pins.txt"), "cuda12"),
        (("3.10", "lightllm-main-pins.txt"), "cuda13"),
        (("3.12", "lightllm-main-pins.txt"), "cuda13"),
    ],
    indirect=["environment"],
    ids=["0.0.1-python3.9", "main-python3.10", "main-python3.12"],
)
def test_the_documented_commands_change_nothing_that_is_installed(environment: Environment, cuda: str) -> None:
    """Once as on the first day, and once more for an extra that is wanted later."""
    first = environment.installs(install_command(f"{cuda},grafana"))
    assert {"lightllm-otel", "nvidia-ml-py", "grafana-api"} <= first.keys()
    assert environment.there.isdisjoint(first)
    for name, version in first.items():
        environment.has(name, version)
    later = environment.installs(install_command("otlp,otlp-grpc"))
    assert {"opentelemetry-exporter-otlp-proto-http", "opentelemetry-exporter-otlp-proto-grpc"} <= later.keys()
    assert environment.there.intersection(later) <= {"lightllm-otel"}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="LightLLM's numpy 1.25.1 has no wheels for this Python")
@pytest.mark.parametrize("environment", [(None, "lightllm-pins.txt")], indirect=True, ids=["0.0.1-newer-pip"])
def test_a_folder_for_images_has_the_versions_that_the_image_has(environment: Environment) -> None:
    """What is first on PYTHONPATH hides what is installed, so it has to be the same."""
    command = install_command("cuda12").replace("pip install", "pip install --only-binary :all: --target /opt/otel")
    installed, image = environment.installs(command), pins("lightllm-pins.txt")
    assert installed["numpy"] == image["numpy"]
    assert {name: version for name, version in installed.items() if image.get(name, version) != version} == {}


def commands_of(file: Path) -> list[str]:
    """Every line of a document that installs the plugin beside LightLLM; the replay needs no LightLLM."""
    lines = [line for line in file.read_text().splitlines() if not line.endswith("lightllm-otel demo")]
    return [line for line in lines if re.search(r"pip install\b.*\blightllm-otel\b", line)]


DOCUMENTS = [
    *sorted(ROOT.glob("docs/*.md")),
    *sorted((ROOT / "deploy").rglob("*.y*ml")),
    *sorted(ROOT.glob("README*.md")),
]


@pytest.mark.parametrize("file", [pytest.param(file, id=file.name) for file in DOCUMENTS if commands_of(file)])
def test_every_command_in_the_documents_keeps_what_is_installed(file: Path) -> None:
    (constraints,) = set(re.findall(r"pip list --format=freeze --exclude lightllm-otel > (\S+)", file.read_text()))
    for command in commands_of(file):
        assert re.search(rf"(-c|--constraint) {constraints} ", command), command


def test_the_constraints_are_of_the_environment_and_need_no_folder_that_is_gone() -> None:
    assert install_command("cuda12") == (
        "pip list --format=freeze --exclude lightllm-otel > installed.txt "
        "&& pip install -c installed.txt 'lightllm-otel[cuda12]'"
    )


@pytest.mark.parametrize("host", ["torch", "lightllm"])
def test_the_host_is_no_dependency(wheel: Path, host: str) -> None:
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    required = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert required
    assert host not in {Requirement(line).name for line in required}
