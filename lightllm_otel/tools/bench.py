"""``lightllm-otel bench``: run the same batch several times, with or without a server, and record each repeat."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightllm_otel.exporter.control import Refused
from lightllm_otel.tools.benchmark import launched, prompts, served, static
from lightllm_otel.tools.benchmark.manifest import Manifest, Outcome, Workload
from lightllm_otel.tools.benchmark.tap import NoRing
from lightllm_otel.tools.ctl import find
from lightllm_otel.tools.ending import ended_by_signals

NAMES = "abcdefgh"  # folders of the sides, if there are several
# Larger than the seed of any repeat, so that warm-up leaves no prompt of a repeat in the prompt cache. A negative seed would not
# do: random.Random(-1) equals Random(1).
_WARM_UP = 1_000_000
Repeat = Callable[[int], Outcome]
_PROBLEMS = (NoRing, Refused, ValueError, prompts.NoTokenizer, served.NoAnswer, static.RankFailed, launched.NoServer)


@ended_by_signals()
def bench(given: argparse.Namespace) -> int:
    """Run the benchmark. Return exit status 0, or 1 with one sentence if it cannot be measured."""
    workload = Workload(given.batch_size, given.input_len, given.output_len, given.repeats, given.warmup, given.every)
    out = given.out or Path(f"bench-{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}")
    try:
        workload.check()
        _check(given)
        way = _static if given.static else _launched if given.serve else _served
        sides = way(given, workload, out)
        manifests = _run(sides, workload, given)
    except _PROBLEMS as problem:
        print(f"lightllm-otel bench: {problem}", file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"lightllm-otel bench: {problem.strerror or problem} ({problem.filename or given.url})", file=sys.stderr)
        return 1
    data = {"kind": "bench", "runs": {str(folder): manifest.content for folder, manifest in manifests.items()}}
    print(json.dumps(data, indent=1) if given.json else render(manifests))
    return 0


def _check(given: argparse.Namespace) -> None:
    """Raise ValueError for options that are missing or that do not go together."""
    if given.model_dir is None:
        raise ValueError("pass --model-dir, the folder of the model" + ("" if given.static else ", for its tokenizer"))
    ways = [bool(given.static), bool(given.serve), bool(given.url) and not given.serve]
    if sum(ways) != 1:
        raise ValueError(
            "pass exactly one of --url (a running server), --serve (a command that starts one) and --static"
        )
    if not given.model_dir.is_dir():
        raise ValueError(f"--model-dir {given.model_dir} is not a folder; pass the one with the model's config.json")
    if given.tp < 1:
        raise ValueError(f"--tp {given.tp}: pass a whole number of at least 1")
    if given.url and len(given.url) > len(NAMES):
        raise ValueError(f"pass at most {len(NAMES)} servers")
    if given.ab and not (given.static or given.serve):
        raise ValueError(
            "--ab needs --serve or --static, because it starts servers or models itself; for two running servers, pass "
            "--url twice"
        )
    foreign = [option for option, value in _of_static(given).items() if value and not given.static]
    foreign += ["--group"] if given.group and (given.serve or given.static) else []
    if foreign:
        raise ValueError(
            f"remove {' and '.join(foreign)}, which would have no effect "
            f"with {'--static' if given.static else '--serve or --url'}"
        )
    if given.serve and given.url and len(given.url) > 1:
        raise ValueError("with --serve, pass one --url at most: the address of its server")


def _of_static(given: argparse.Namespace) -> dict[str, bool]:
    """Return which options that only ``--static`` has were given."""
    return {
        "--tp": given.tp != 1, "--data-type": given.data_type is not None, "--no-graphs": given.no_graphs,
        "--share-gpu": given.share_gpu,
    }  # fmt: skip


def _served(given: argparse.Namespace, workload: Workload, out: Path) -> dict[Path, tuple[Repeat, Manifest]]:
    """Warm up all servers. Return a function for one repeat and a manifest for each, by folder. Raises ValueError."""
    own, size = prompts.tokenizer(given.model_dir)
    groups = given.group or [None] * len(given.url)
    if len(groups) != len(given.url):
        raise ValueError("pass one --group for each --url, in the same order; lightllm-otel doctor lists the groups")
    sides: dict[Path, tuple[Repeat, Manifest]] = {}
    for place, (url, group) in enumerate(zip(given.url, groups)):
        server = served.Server(url, find(group))
        folder = out if len(given.url) == 1 else out / NAMES[place]

        def texts(seed: int, side: int = place) -> list[str]:
            return prompts.prompts(own, size, workload.batch_size, workload.input_len, 1000 * side + seed)

        for number in range(workload.warmup):
            server.batch(texts(_WARM_UP + number), min(workload.output_len, 8))

        def once(number: int, server: served.Server = server, texts: Any = texts, folder: Path = folder) -> Outcome:
            with served.sampling(server.folder, workload.every):
                return served.repeat(server, workload, texts, number, folder)

        sides[folder] = once, Manifest(folder, "served", workload, url=server.url)
    return sides


def _launched(given: argparse.Namespace, workload: Workload, out: Path) -> dict[Path, tuple[Repeat, Manifest]]:
    """Return the sides, with a new server for each repeat, so that variation from start to start is part of the result."""
    words = launched.words_of(given.serve)
    url = given.url[0] if given.url else launched.url_of(words)
    changes = [_changes(text) for text in given.ab or [""]]
    own, size = prompts.tokenizer(given.model_dir)
    sides: dict[Path, tuple[Repeat, Manifest]] = {}
    for place, change in enumerate(changes):
        folder = out / NAMES[place] if given.ab else out

        def texts(seed: int) -> list[str]:
            return prompts.prompts(own, size, workload.batch_size, workload.input_len, seed)

        def once(number: int, change: dict[str, str] = change, folder: Path = folder) -> Outcome:
            log = folder / f"server-{number}.log"
            with launched.running(words, url, change, workload.every, log) as server:
                for again in range(workload.warmup):
                    server.batch(texts(_WARM_UP + again), min(workload.output_len, 8))
                return served.repeat(server, workload, texts, number, folder)

        sides[folder] = once, Manifest(folder, "served", workload, url=url, command=words, changes=change)
    return sides


def _static(given: argparse.Namespace, workload: Workload, out: Path) -> dict[Path, tuple[Repeat, Manifest]]:
    """Return the sides, with new processes for each repeat."""
    changes = [_changes(text) for text in given.ab] if given.ab else [{}]
    sides: dict[Path, tuple[Repeat, Manifest]] = {}
    for place, change in enumerate(changes):
        folder = out / NAMES[place] if given.ab else out

        def once(number: int, change: dict[str, str] = change, folder: Path = folder) -> Outcome:
            return static.repeat(
                workload, given.model_dir, given.tp, number, folder, change, given.data_type, not given.no_graphs,
                given.share_gpu,
            )  # fmt: skip

        sides[folder] = (
            once,
            Manifest(
                folder,
                "static",
                workload,
                tp=given.tp,
                graphs=not given.no_graphs,
                share_gpu=given.share_gpu,
                changes=change,
            ),
        )
    return sides


def _changes(text: str) -> dict[str, str]:
    """Parse changes of the environment, such as ``A=1 B=two``; empty means none. Raises ValueError."""
    found = {}
    for word in shlex.split(text):
        name, sign, value = word.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"--ab {text!r} is not understood: pass variables as NAME=VALUE, separated by spaces")
        found[name] = value
    return found


def _order(folders: list[Path], repeats: int) -> Iterator[tuple[Path, int]]:
    """Yield folder and repeat, with an alternating order of folders, so that drift over time affects all sides equally."""
    for number in range(1, repeats + 1):
        for folder in folders if number % 2 else reversed(folders):
            yield folder, number


def _run(
    sides: dict[Path, tuple[Repeat, Manifest]], workload: Workload, given: argparse.Namespace
) -> dict[Path, Manifest]:
    total = workload.repeats * len(sides)
    with tqdm(total=total, unit="repeat", disable=None, file=sys.stderr) as progress:  # None: only on a terminal
        for folder, number in _order(list(sides), workload.repeats):
            once, manifest = sides[folder]
            outcome = once(number)
            manifest.add(outcome)
            progress.set_postfix_str(f"{outcome.output_tokens_per_second:.4g} output tokens/s", refresh=False)
            progress.update()
            for note in outcome.notes:
                progress.write(f"note: {note}", file=sys.stderr)
    return {folder: manifest for folder, (_, manifest) in sides.items()}


def render(manifests: dict[Path, Manifest]) -> str:
    """Return a summary of the runs as text."""
    lines = []
    for folder, manifest in manifests.items():
        rates = [repeat["output_tokens_per_second"] for repeat in manifest.content["repeats"]]
        lines.append(f"{folder}: {len(rates)} repeats, {min(rates):.4g} to {max(rates):.4g} output tokens/s")
    folders = list(map(str, manifests))
    following = f", lightllm-otel compare {' '.join(folders)}" if len(folders) > 1 else ""
    return "\n".join([*lines, f"next: lightllm-otel report {folders[0]}{following}"])
