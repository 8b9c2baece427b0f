"""Every setting, once: the table that the code, the README and ``lightllm-otel doctor`` derive from."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightllm_otel.vocabulary import Level

OFF_WORDS = ("", "0", "false", "off")
PREFIX = "LIGHTLLM_OTEL"


class GraphPolicy(str, enum.Enum):
    """Whether CUDA graphs get instrumented twins."""

    OFF = "off"
    AUTO = "auto"
    FORCE = "force"


def _sizes(text: str) -> frozenset[int]:
    """``1,8,16-32`` as a set; empty for empty."""
    sizes: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[0] < 1:
            raise ValueError(text)
        sizes.update(numbers)
    return frozenset(sizes)


def _level(text: str) -> Level:
    return Level(text.strip().lower())


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _switch(text: str) -> bool:
    if text.strip().lower() not in ("on", "1", "true", *OFF_WORDS):
        raise ValueError(text)
    return text.strip().lower() not in OFF_WORDS


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise ValueError(text)
    return number


def _path(text: str) -> Path:
    return Path(text).expanduser()


def default_directory() -> str:
    """The folder of this user's rings."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
    return f"{base}/lightllm-otel-{os.getuid()}"


def default_targets() -> Path:
    """The folder of discovery files, the same for all users of this machine: Prometheus' configuration has one pattern."""
    return Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp")


def _targets(text: str) -> Path | None:
    if not text:
        return default_targets()
    return None if text.lower() in OFF_WORDS else _path(text)


def default_state() -> str:
    """The folder of this user's that outlives a restart of the machine; of a user without a home the one of rings."""
    given = os.environ.get("XDG_STATE_HOME")
    home = os.path.expanduser("~")  # noqa: PTH111 - pathlib's raises where there is none
    base = given or (f"{home}/.local/state" if home != "~" else "")
    return f"{base}/lightllm-otel" if base else f"{default_directory()}/state"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One environment variable: its name after ``LIGHTLLM_OTEL_``, how to read it, and what it means."""

    name: str
    field: str
    default: str
    parse: Callable[[str], Any]
    expects: str
    unit: str
    help: str

    @property
    def variable(self) -> str:
        return f"{PREFIX}_{self.name}"


SETTINGS = (
    Setting("LEVEL", "level", "operators", _level, "off, steps or operators", "",
            "What is measured: whole steps only, or their operators as well."),
    Setting("SAMPLE_EVERY", "sample_every", "64", _positive, "a whole number of at least 1", "decode steps",
            "One decode step in so many has its operators timed; every step has its whole time taken. "
            "Prefill steps of 512 tokens and more always are, smaller ones one in 4 (or in N, if N is smaller)."),
    Setting("GRAPHS", "graphs", "auto", lambda text: GraphPolicy(text.strip().lower()), "auto, off or force", "",
            "Whether instrumented graphs are captured beside the server's CUDA graphs, for sampled steps to replay. auto: where "
            "their outputs are bit for bit those of the server's own; force: also where the server's own differ from replay to "
            "replay; off: nothing of CudaGraph is touched."),
    Setting("GRAPH_BATCH_SIZES", "graph_batch_sizes", "", _sizes, "sizes like 1,8,16-32", "",
            "Only graphs of these batch sizes are instrumented, whatever they take; empty means as many as the next two allow."),
    Setting("GRAPH_MIB", "graph_mib", "256", _positive, "a whole number of at least 1", "MiB",
            "GPU memory that instrumented graphs may take; batch sizes in between then have whole steps only."),
    Setting("GRAPH_SECONDS", "graph_seconds", "5", _positive, "a whole number of at least 1", "s",
            "Time that instrumented graphs may add to the start of the server."),
    Setting("HOST", "host", "127.0.0.1", str, "an address of this machine", "",
            "Where the exporter listens; 0.0.0.0 for a Prometheus on another machine."),
    Setting("PORT", "port", "", lambda text: _port(text) if text else None, "a port from 1 to 65535", "",
            "The exporter's port; empty means the first free one of 9464–9479."),
    Setting("SERVER", "server", "", str, "a name", "",
            "The server's name in metrics and alerts; empty means HOST/GROUP. Set one that outlives a roll-out where host "
            "names do not: in Kubernetes the name of the node."),
    Setting("DIR", "directory", "", lambda text: _path(text or default_directory()), "a folder", "",
            "Rings and locks, in a folder that no other user can write; empty means /dev/shm/lightllm-otel-UID."),
    Setting("TARGETS", "targets", "", _targets, "a folder, or off", "",
            "Where the exporter writes the file by which Prometheus finds it; empty means /dev/shm, off means nowhere."),
    Setting("RING_MIB", "ring_mib", "4", _positive, "a whole number of at least 1", "MiB",
            "Size of each rank's ring; what is not read in time is overwritten, and counted."),
    Setting("NVML", "nvml", "on", _switch, "on or off", "",
            "Whether clocks, temperature, power, throttling and link errors of the GPUs are read, once a second; off where "
            "dcgm-exporter is scraped."),
    Setting("STATE", "state", "", lambda text: _path(text or default_state()), "a folder", "",
            "What operators should take, a file for each kind of server; empty means ~/.local/state/lightllm-otel."),
    Setting("BASELINE", "baseline", "", lambda text: _path(text) if text else None, "a file of expectations", "",
            "Compare with this file, for instance of a server that is known to be good, and learn nothing."),
    Setting("RECORD", "record", "", lambda text: _path(text) if text else None, "a folder that can be written", "",
            "Also write every record to this folder, for lightllm-otel demo."),
    Setting("RECORD_MAX_MIB", "record_max_mib", "256", _positive, "a whole number of at least 1", "MiB",
            "A recording stops growing at this size."),
    Setting("NVTX", "nvtx", "off", lambda text: text.strip().lower() not in OFF_WORDS, "1 or 0", "",
            "`1` puts an NVTX range around every operator that Python launches, for Nsight; never inside CUDA graphs."),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of this process, read once. ``problems`` has one sentence for each that could not be used."""

    enabled: bool
    level: Level
    sample_every: int
    graphs: GraphPolicy
    graph_batch_sizes: frozenset[int]
    graph_mib: int
    graph_seconds: int
    host: str
    port: int | None
    server: str
    directory: Path
    targets: Path | None
    ring_mib: int
    nvml: bool
    state: Path | None
    baseline: Path | None
    record: Path | None
    record_max_mib: int
    nvtx: bool
    problems: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read all settings. A value that cannot be used turns the plugin off and is reported, never guessed at."""
        values: dict[str, Any] = {}
        problems = []
        for setting in SETTINGS:
            text = environ.get(setting.variable, "").strip() or setting.default
            try:
                values[setting.field] = setting.parse(text)
            except ValueError:
                problems.append(
                    f"{setting.variable}={text} is not {setting.expects}; lightllm-otel stays off until it is "
                    f"changed (default: {setting.default or 'empty'}) and the server restarted"
                )
                values[setting.field] = setting.parse(setting.default)
        return cls(enabled=is_on(environ) and not problems, problems=tuple(problems), **values)


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether ``LIGHTLLM_OTEL`` asks for the plugin; the .pth file applies the same rule."""
    return environ.get(PREFIX, "").strip().lower() not in OFF_WORDS
