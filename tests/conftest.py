"""The wheel, built once, and a Python that has it beside everything that the tests' own Python has."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from other_user import VICTIM

ROOT = Path(__file__).resolve().parents[1]
# LightLLM starts them by name. Of gunicorn until v1.1.0, hypercorn since v1.2.0: name, module, function.
HTTP_SERVERS = (("gunicorn", "gunicorn.app.wsgiapp", "run"), ("hypercorn", "hypercorn.__main__", "main"))


@pytest.fixture(scope="session", autouse=True)
def _no_state_in_the_developers_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What an exporter of a test learns is of no use to a server of this user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def discovery_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which exporters of tests announce themselves: a Prometheus of this machine need not scrape them."""
    folder = tmp_path_factory.mktemp("targets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTLLM_OTEL_TARGETS", str(folder))
        patch.setattr("lightllm_otel.settings.default_targets", lambda: folder)
        yield folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("lightllm_otel-*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose lightllm_otel, boot module and .pth are the wheel's.

    It sees this Python's packages through a path, without a copy of torch; site.py reads no .pth files there, so an
    editable install of ours has no say.
    """
    folder = tmp_path_factory.mktemp("with-wheel")
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    # pip's -I keeps the repository, our working directory, out of its sight.
    install = [
        sys.executable,
        "-I",
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(install, check=True, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # Before the .pth of ours, as in an ordinary installation, where our dependencies lie beside us.
    (site_packages / "00-host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name, module, start in HTTP_SERVERS:  # the ones beside sys.executable would run that Python
        script = folder / "bin" / name
        # hypercorn's workers import the script once more.
        run = f"if __name__ == '__main__':\n    sys.exit({start}())\n"
        script.write_text(f"#!{python}\nimport sys\nfrom {module} import {start}\n{run}")
        script.chmod(0o755)
    return python


@pytest.fixture
def plain_environment(discovery_files: Path) -> dict[str, str]:
    """The environment without anything of ours, so that a developer's own settings cannot decide a test."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LIGHTLLM_", "PYTHON"))}
    return {**plain, "LIGHTLLM_OTEL_TARGETS": str(discovery_files)}


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /dev/shm or /tmp: of root, and everybody may write there."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="lightllm-otel-test-", dir=base))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def default_folder() -> Iterator[Path]:
    """The folder that servers of a made-up user use where nothing is set; nobody but tests is that user."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
    places = [Path(base) / f"lightllm-otel-{VICTIM}", Path(f"/tmp/lightllm-otel-{VICTIM}")]

    def remove() -> None:
        for place in places:
            if place.is_symlink():
                place.unlink()
            elif place.exists():
                shutil.rmtree(place)

    remove()
    yield places[0]
    remove()


@pytest.fixture(autouse=True)
def host_untouched() -> Iterator[Callable[[object], None]]:
    """No test may leave a patch behind: torch.distributed and every host given to this fixture are as they were.

    A test that patches a fake host calls ``host_untouched(host)`` before it does.
    """
    watched: list[tuple[object, dict[str, object]]] = []

    def watch(owner: object) -> None:
        watched.append((owner, dict(vars(owner))))

    if "torch.distributed" in sys.modules:
        watch(sys.modules["torch.distributed"])
    yield watch
    for owner, before in watched:
        after = dict(vars(owner))
        changed = [name for name in before.keys() | after.keys() if before.get(name) is not after.get(name)]
        imported = [n for n in changed if n not in before and f"{getattr(owner, '__name__', '')}.{n}" in sys.modules]
        changed = [name for name in changed if name not in imported]  # a submodule is no patch
        assert not changed, f"{owner} was left with changed {changed}"


@pytest.fixture(autouse=True)
def _failures_of_the_exporter_are_not_swallowed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fault in a part of the exporter fails the test, unless it is about just that (fixture ``lenient``)."""
    from lightllm_otel.parts import Parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "strict", "lenient" not in request.fixturenames)
        yield


@pytest.fixture
def lenient() -> None:
    """Parts of the exporter may fail in this test."""
