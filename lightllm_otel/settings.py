"""Settings: one table from which the code, the documents and ``lightllm-otel doctor`` are derived."""

from __future__ import annotations

import dataclasses
import enum
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

from lightllm_otel.records.vocabulary import Level

PREFIX = "LIGHTLLM_OTEL"
# Set by the process that has logged the problems, so that its children (other processes, exporter) do not log them again.
REPORTED = f"{PREFIX}_REPORTED"
ON_WORDS = ("1", "true", "on", "yes")
# The .pth file and the boot module have copies, because they must not import the package while it is off.
OFF_WORDS = ("", "0", "false", "off", "no", "none", "null", "disabled")
QUOTES = "\"'"
# Kubernetes sets NAME_PORT=tcp://10.0.0.1:9464 in every container for each Service of its namespace; so do Docker's links.
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
LARGEST_BATCH = 65536
SHOWN_CHARACTERS = 80


class GraphPolicy(str, enum.Enum):
    """Policy for instrumented graphs; see the setting LIGHTLLM_OTEL_GRAPHS."""

    OFF = "off"
    AUTO = "auto"
    FORCE = "force"


def unquoted(text: str) -> str:
    """Return the text without surrounding spaces and one pair of quotes, which files of environment variables may keep."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES:
        return text[1:-1].strip()
    return text


def switch(text: str) -> bool:
    """Read a switch, by the one rule for ``LIGHTLLM_OTEL`` and all on/off settings. Raises ValueError for other words."""
    if unquoted(text).lower() in ON_WORDS:
        return True
    if text.strip().strip(QUOTES).strip().lower() in OFF_WORDS:
        return False
    raise ValueError(text)


def _sizes(text: str) -> frozenset[int]:
    """Read sizes like ``1,8,16-32``; an empty text gives an empty set. Raises ValueError."""
    sizes: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[0] < 1 or numbers[-1] > LARGEST_BATCH:
            raise ValueError(text)
        sizes.update(numbers)
    return frozenset(sizes)


def _word(text: str) -> str:
    """Return the word of a choice in lower case; every word that means off becomes ``off``."""
    return "off" if text.lower() in OFF_WORDS else text.lower()


def _whole_number(most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from 1 to ``most``, a limit of headers, files or GPUs. It raises ValueError."""

    def parse(text: str) -> int:
        number = int(text)
        if not 0 < number <= most:
            raise ValueError(text)
        return number

    return parse


def _host(text: str) -> str:
    """Read an address. Raises ValueError for URLs and ports, which would be looked up as the name of a machine."""
    address = text.strip("[]")
    if re.search(r"[\s/]", address) or address.count(":") == 1:
        raise ValueError(text)
    return address


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~nosuchuser
        raise ValueError(text) from error


def default_directory() -> str:
    """Return the folder of this user's rings."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
    return f"{base}/lightllm-otel-{os.getuid()}"


def default_targets() -> Path:
    """Return the folder of discovery files. All users of a machine share it, because Prometheus is given one pattern."""
    return Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp")


def _targets(text: str) -> Path | None:
    if not text:
        return default_targets()
    return None if text.lower() in OFF_WORDS else _path(text)


def default_state() -> str:
    """Return this user's folder that survives a restart of the machine; without a home, a folder beside the rings."""
    given = os.environ.get("XDG_STATE_HOME")
    home = os.path.expanduser("~")  # noqa: PTH111 - pathlib raises if there is no home
    base = given or (f"{home}/.local/state" if home != "~" else "")
    return f"{base}/lightllm-otel" if base else f"{default_directory()}/state"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One environment variable: its name after ``LIGHTLLM_OTEL_``, how to read it, and what it means.

    ``wrong``: used for a value that cannot be read if the default would do more than the user asked for: a field, its value,
    and a sentence. Without it the default is used. The plugin stays on in both cases.
    """

    name: str
    field: str
    default: str
    parse: Callable[[str], Any]
    expects: str
    unit: str
    help: str
    wrong: Optional[tuple[str, Any, str]] = None

    @property
    def variable(self) -> str:
        """Return the full name of the environment variable."""
        return f"{PREFIX}_{self.name}"

    @property
    def default_in_words(self) -> str:
        """Return the default for a reader; for an empty default, its meaning."""
        return self.default or self.help.partition("empty means ")[2].rstrip(".") or "empty"


# Whoever sets these wants less than the default does.
_NO_OPERATORS = ("level", Level.STEPS, "steps are measured, their operators are not")
_NO_GRAPHS = (
    "graphs",
    GraphPolicy.OFF,
    "no CUDA graph is instrumented, so the operators inside CUDA graphs are not timed",
)


def _off(field: str) -> tuple[str, bool, str]:
    return field, False, "it is off"


SETTINGS = (
    Setting("LEVEL", "level", "operators", lambda text: Level(_word(text)), "off, steps or operators", "",
            "Measure nothing, steps only, or steps and their operators.", _NO_OPERATORS),
    Setting("SAMPLE_EVERY", "sample_every", "64", _whole_number(10**9), "a whole number from 1 to 1000000000", "decode steps",
            "Time the operators of one decode step in N; the step itself is always timed. Prefill steps of 512 tokens or more "
            "always have their operators timed, smaller ones one in 4 (or one in N, if N is smaller)."),
    Setting("GRAPHS", "graphs", "auto", lambda text: GraphPolicy(_word(text)), "auto, off or force", "",
            "Capture instrumented graphs beside the server's CUDA graphs; sampled steps replay them. auto: only if their outputs "
            "equal those of the server's graphs bit for bit; force: also if the outputs of the server's own graphs differ from "
            "replay to replay; off: CudaGraph is not touched.", _NO_GRAPHS),
    Setting("GRAPH_BATCH_SIZES", "graph_batch_sizes", "", _sizes, f"sizes like 1,8,16-32, up to {LARGEST_BATCH}", "",
            "Instrument graphs of exactly these batch sizes, without a limit on memory and time; empty means as many as "
            "LIGHTLLM_OTEL_GRAPH_MIB and LIGHTLLM_OTEL_GRAPH_SECONDS allow.",
            _NO_GRAPHS),
    Setting("GRAPH_MIB", "graph_mib", "256", _whole_number(2**20), "a whole number from 1 to 1048576", "MiB",
            "GPU memory that instrumented graphs may take. If it does not suffice for all batch sizes, some are left out, and "
            "their steps are timed without operators.", _NO_GRAPHS),
    Setting("GRAPH_SECONDS", "graph_seconds", "5", _whole_number(86400), "a whole number from 1 to 86400", "s",
            "Time that instrumented graphs may add to the start of the server.", _NO_GRAPHS),
    Setting("HOST", "host", "127.0.0.1", _host, "an address of this machine, without a port", "",
            "Address on which the exporter listens; 0.0.0.0 for a Prometheus on another machine."),
    Setting("PORT", "port", "", lambda text: _whole_number(65535)(text) if text else None, "a port from 1 to 65535", "",
            "The exporter's port; empty means the first free one of 9464–9479."),
    Setting("SERVER", "server", "", str, "a name", "",
            "The server's name in metrics and alerts. If host names change with each roll-out, set a name that does not change: "
            "in Kubernetes the name of the node; empty means HOST/GROUP."),
    Setting("DIR", "directory", "", lambda text: _path(text or default_directory()), "a folder", "",
            "Folder of rings and locks, which no other user can write; empty means /dev/shm/lightllm-otel-UID."),
    Setting("TARGETS", "targets", "", _targets, "a folder, or off", "",
            "Folder of the file by which Prometheus finds the exporter; off writes no file; empty means /dev/shm."),
    Setting("RING_MIB", "ring_mib", "4", _whole_number(1024), "a whole number from 1 to 1024", "MiB",
            "Size of each rank's ring. Records that are not read in time are overwritten, and counted."),
    Setting("NVML", "nvml", "on", switch, "on or off", "",
            "Read clocks, temperature, power, throttling and link errors of the GPUs once a second. Turn it off if dcgm-exporter "
            "is scraped.", _off("nvml")),
    Setting("STATE", "state", "", lambda text: _path(text or default_state()), "a folder", "",
            "Directory of learned baselines, one file per server configuration; empty means ~/.local/state/lightllm-otel."),
    Setting("BASELINE", "baseline", "", lambda text: _path(text) if text else None, "a file with a baseline", "",
            "Compare with the baseline in this file, for instance that of a known good server, and learn none."),
    Setting("RECORD", "record", "", lambda text: _path(text) if text else None, "a folder that can be written", "",
            "Folder to which every record is also written, for lightllm-otel demo."),
    Setting("RECORD_MAX_MIB", "record_max_mib", "256", _whole_number(2**24), "a whole number from 1 to 16777216", "MiB",
            "Largest size of a recording; it stops growing there."),
    Setting("NVTX", "nvtx", "off", switch, "on or off", "",
            "Put an NVTX range around every operator that Python launches, for Nsight; inside CUDA graphs there are none.",
            _off("nvtx")),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of this process, read once. The fields are described by :data:`SETTINGS`.

    ``problems``: one sentence for each value that cannot be used. ``notes``: one for each value that Kubernetes has set.
    """

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
    notes: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read all settings. A value that cannot be used is reported, and affects no other setting."""
        values: dict[str, Any] = {}
        refused: dict[str, Any] = {}
        problems, notes = [], []
        enabled = False
        try:
            enabled = is_on(environ)
        except ValueError:
            problems.append(
                f"{PREFIX}={shown(environ[PREFIX])} is neither on ({', '.join(ON_WORDS)}) nor off (0, false, off, no), so "
                f"nothing is measured. Set {PREFIX}=1 or {PREFIX}=0 and restart the server"
            )
        for setting in SETTINGS:
            text = unquoted(environ.get(setting.variable, "")) or setting.default
            if setting.variable.endswith("_PORT") and SERVICE_LINK.fullmatch(text):
                notes.append(_service_link(setting, text))
                text = setting.default
            try:
                values[setting.field] = setting.parse(text)
            except ValueError:
                values[setting.field] = setting.parse(setting.default)
                if setting.wrong is not None:
                    refused[setting.wrong[0]] = setting.wrong[1]
                problems.append(_problem(setting, text))
        return cls(enabled=enabled, problems=tuple(problems), notes=tuple(notes), **{**values, **refused})


def _problem(setting: Setting, text: str) -> str:
    instead = setting.wrong[2] if setting.wrong else f"the default is used: {setting.default_in_words}"
    return f"{setting.variable}={shown(text)} is not {setting.expects}; {instead}. Correct it and restart the server"


def _service_link(setting: Setting, text: str) -> str:
    service = setting.variable[: -len("_PORT")].lower().replace("_", "-")
    return (
        f"{setting.variable}={text} was set by Kubernetes for the Service {service}, so the default is used: "
        f"{setting.default_in_words}. Set {setting.variable} in the pod, or enableServiceLinks: false, to end this message"
    )


def shown(text: str) -> str:
    """Return a value as one short, printable line."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def is_on(environ: Mapping[str, str]) -> bool:
    """Tell whether ``LIGHTLLM_OTEL`` asks for the plugin. Raises ValueError if it is neither on nor off."""
    return switch(environ.get(PREFIX, ""))
