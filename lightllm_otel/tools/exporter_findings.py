"""Findings of ``lightllm-otel doctor`` on the exporter of a group."""

from __future__ import annotations

from pathlib import Path

from lightllm_otel.records.folder import LOCK_NAME, is_locked
from lightllm_otel.records.vocabulary import ExporterStage
from lightllm_otel.tools.finding import NOTE, OK, WRONG, Finding
from lightllm_otel.tools.scrape import NoExporter, Scrape, fetch
from lightllm_otel.tools.straggler import straggler


def exporter(folder: Path, url: str | None, remote: bool) -> list[Finding]:
    """Return the findings on a group's exporter. ``url``: the one that it announced. ``remote``: see :func:`.doctor.doctor`."""
    if not is_locked(folder / LOCK_NAME):
        return [Finding(WRONG, "exporter", f"no exporter runs for {folder.name}; see {folder / 'exporter.log'}",
                        f"lightllm-otel exporter --folder {folder} --detach")]  # fmt: skip
    if url is None:
        return [Finding(WRONG, "exporter", f"runs, but has no address; see {folder / 'exporter.log'}",
                        "set LIGHTLLM_OTEL_PORT to a free port and restart the server")]  # fmt: skip
    try:
        scrape: Scrape = fetch(url)
    except NoExporter as problem:
        return [Finding(WRONG, "exporter", str(problem), "kill its process; the server then starts a new exporter")]
    age = scrape.value("lightllm_otel_data_age_seconds")
    findings = [Finding(OK, "exporter", f"{url}, oldest unread step {age:.1f} s"), *failures(scrape, folder)]
    if refused := scrape.value("lightllm_otel_export_errors_total"):
        findings.append(Finding(WRONG, "otlp", f"{refused:.0f} batches could not be sent; {folder / 'exporter.log'} says why",
                                "check the collector and OTEL_EXPORTER_OTLP_ENDPOINT"))  # fmt: skip
    late = straggler(scrape)
    findings += [Finding(NOTE, "ranks", late)] if late else []
    if url.split("//")[1].startswith(("127.", "localhost", "[::1]")):
        findings.append(
            Finding(
                WRONG if remote else NOTE,
                "exporter",
                "listens on this machine only",
                "for a Prometheus on another machine, restart the server with LIGHTLLM_OTEL_HOST=0.0.0.0",
            )
        )
    return findings


def failures(scrape: Scrape, folder: Path) -> list[Finding]:
    """Return a finding for each part of the exporter that has failed. Rings count the failures of model processes."""
    stages = {stage.value for stage in ExporterStage}
    counted = {
        dict(labels)["stage"]: count
        for labels, count in scrape.samples.get("lightllm_otel_errors_total", {}).items()
        if count and dict(labels)["stage"] in stages
    }
    return [
        Finding(WRONG, "exporter", f"its part {stage} has failed {count:.0f} times; all other parts still work",
                f"{folder / 'exporter.log'} or the server's log says why")
        for stage, count in sorted(counted.items())
    ]  # fmt: skip
