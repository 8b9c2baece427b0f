"""The plugin on itself: what it costs, what it lost, what it covers."""

from __future__ import annotations

from grafana.table import LINES, STAT, TABLE, TARGET, Board, Panel, Query


def by(label: str, metric: str) -> str:
    return f"sum by (instance, {label}) (rate({metric}{{$SERVER}}[RATE]))"


PLUGIN = Board(
    "lightllm-otel-plugin",
    "The plugin itself",
    "What the plugin costs, what it lost, which operators and steps it covers, and how exact its clocks are.",
    (
        ("Well", (
            Panel("Errors", STAT, "short",
                  "Failures of the plugin in this time range (lightllm_otel_errors_total). None reached the server; the log has the"
                  " first of each kind.",
                  (Query("sum(increase(lightllm_otel_errors_total{$SERVER}[$__range]))"),), 6, 4, steps=((1, "red"),)),
            Panel("Lost steps", STAT, "short",
                  "Steps, or their operators, that were lost in this time range (lightllm_otel_records_dropped_total).",
                  (Query("sum(increase(lightllm_otel_records_dropped_total{$SERVER}[$__range]))"),), 6, 4, steps=((1, "orange"),)),
            Panel("Age of the data", STAT, "s", "Age of the oldest step that is not counted yet (lightllm_otel_data_age_seconds).",
                  (Query("max(lightllm_otel_data_age_seconds{$SERVER})"),), 6, 4, empty="No exporter answers", steps=((10, "orange"),)),
            Panel("Series of the largest server", STAT, "short",
                  "Samples of one scrape (scrape_samples_scraped, Prometheus' own) of those that have lightllm_server_info. At most 2,000"
                  " for eight ranks of a dense model, and 3,000 with experts.",
                  (Query(f'max(scrape_samples_scraped{{job=~"$job",instance=~"$instance"}} and on ({TARGET}) lightllm_server_info{{$SERVER}})'),), 6, 4, empty="Nothing is scraped",
                  steps=((3001, "orange"),)),
        )),
        ("What it costs", (
            Panel("CPU time of the model processes", LINES, "percentunit",
                  "Share of a model thread's time that is spent in the plugin (lightllm_otel_hook_seconds_total by ranks).",
                  (Query(f"sum by ({TARGET}) (rate(lightllm_otel_hook_seconds_total{{$SERVER}}[RATE]))"
                         f" / count by ({TARGET}) (lightllm_gpu_step_in_flight_seconds{{$SERVER}})", "{{instance}}"),)),
            Panel("A sampled graph step against its neighbours", LINES, "suffix:×",
                  "Time of a decode step with the instrumented graph by its plain neighbours of the same batch"
                  " (lightllm_otel_distortion_ratio). 1.01 at one step in 64 costs 1 % of 1/64.",
                  (Query("max by (instance) (lightllm_otel_distortion_ratio{$SERVER})", "{{instance}}"),),
                  empty="No graph step was sampled"),
        )),
        ("What it covers", (
            Panel("Sampled steps", LINES, "cps", "Steps a second whose operators were timed (lightllm_otel_steps_sampled_total).",
                  (Query("sum by (instance) (rate(lightllm_otel_steps_sampled_total{$SERVER}[RATE]))", "{{instance}}"),), 8),
            Panel("Whole time only", LINES, "cps",
                  "Steps a second that were due but have no operators (lightllm_otel_steps_whole_only_total): not_instrumented means that"
                  " the batch size has no instrumented graph, overlap microbatches, draft a draft model.",
                  (Query(by("reason", "lightllm_otel_steps_whole_only_total"), "{{instance}} {{reason}}"),), 8),
            Panel("Lost", LINES, "cps", "Steps a second that were lost, by reason (lightllm_otel_records_dropped_total).",
                  (Query(by("reason", "lightllm_otel_records_dropped_total"), "{{instance}} {{reason}}"),), 8),
            Panel("Not compared over the ranks", LINES, "cps",
                  "Sampled steps whose collectives were not compared (lightllm_otel_steps_unmatched_total): a rank lacked the step, was"
                  " late, had restarted, or computed something different.",
                  (Query(by("reason", "lightllm_otel_steps_unmatched_total"), "{{instance}} {{reason}}"),), 8),
            Panel("Batch sizes with an instrumented graph", LINES, "short",
                  "Batch sizes with an instrumented graph on every rank (lightllm_otel_instrumented_graphs). 0 with graphs on: only the"
                  " total time of steps is known; doctor says why.",
                  (Query("max by (instance) (lightllm_otel_instrumented_graphs{$SERVER})", "{{instance}}"),), 8),
            Panel("Errors by stage", LINES, "cps", "Failures of the plugin a second (lightllm_otel_errors_total).",
                  (Query(by("stage", "lightllm_otel_errors_total"), "{{instance}} {{stage}}"),), 8),
            Panel("Not taken by a receiver", LINES, "cps",
                  "Batches a second of metrics or spans that an OTLP receiver did not take (lightllm_otel_export_errors_total).",
                  (Query("sum by (instance) (rate(lightllm_otel_export_errors_total{$SERVER}[RATE]))", "{{instance}}"),), 12),
            Panel("Spans dropped", LINES, "cps",
                  "Spans a second that were not sent, by reason (lightllm_otel_spans_dropped_total).",
                  (Query(by("reason", "lightllm_otel_spans_dropped_total"), "{{instance}} {{reason}}"),), 12,
                  empty="No span was dropped"),
            Panel("Operators found", TABLE, "short",
                  "1: found in the model and timed on every rank; 0: not (lightllm_otel_slot_installed). Not every model has every"
                  " operator.",
                  (Query("min by (instance, operator) (lightllm_otel_slot_installed{$SERVER})", "found"),), 12, 8),
            Panel("Known of this LightLLM", TABLE, "short",
                  "1: this LightLLM has everything that the feature needs; 0: it does not, and lightllm-otel doctor says what is"
                  " missing (lightllm_otel_feature_available).",
                  (Query("min by (instance, feature) (lightllm_otel_feature_available{$SERVER})", "available"),), 12, 8),
            Panel("Who runs what", TABLE, "short",
                  "Model, GPU, parallelism and versions of each server (lightllm_server_info).",
                  (Query("max by (instance, model, gpu, tp, dp, dtype, lightllm, torch, cuda, plugin)"
                         " (lightllm_server_info{$SERVER})", "known"),), 24, 6, empty="No server is scraped"),
            Panel("What is measured, and how", TABLE, "short",
                  "Level that was set, link between the GPUs, scope of the comparison and clock (lightllm_otel_state_info).",
                  (Query("max by (instance, level, link, scope, clock) (lightllm_otel_state_info{$SERVER})", "known"),), 12, 6,
                  empty="No server is scraped"),
            Panel("Exporters", TABLE, "short", "Versions of the plugin and Python in the exporter (lightllm_otel_build_info).",
                  (Query("max by (instance, version, python) (lightllm_otel_build_info{$SERVER})", "known"),), 12, 6,
                  empty="No exporter is scraped"),
            Panel("Exporter runs since", LINES, "s",
                  "Time since the exporter process has started (lightllm_otel_start_time_seconds). A fall to 0 is a restart; counters"
                  " begin at 0 then.",
                  (Query("time() - max by (instance) (lightllm_otel_start_time_seconds{$SERVER})", "{{instance}}"),), 12, 8,
                  empty="No exporter is scraped"),
            Panel("Steps of each rank", LINES, "cps",
                  "Steps a second that each rank starts (lightllm_gpu_steps_total). Ranks of one server start equally many; one that"
                  " stands still holds up the others.",
                  (Query(f"sum by ({TARGET}, rank) (rate(lightllm_gpu_steps_total{{$RANKS}}[RATE]))", "{{instance}} rank {{rank}}"),),
                  12, 8),
        )),
        ("How exact", (
            Panel("Step of the GPU clock", LINES, "s",
                  "Times are multiples of it (lightllm_otel_clock_quantum_seconds). A coarse clock widens the error of one call, not of a mean.",
                  (Query("max by (instance, mode) (lightllm_otel_clock_quantum_seconds{$SERVER})", "{{instance}} {{mode}}"),), 8),
            Panel("Cost of a boundary", LINES, "s",
                  "GPU time that a boundary adds to an interval, calibrated and subtracted (lightllm_otel_boundary_cost_seconds).",
                  (Query("max by (instance, mode) (lightllm_otel_boundary_cost_seconds{$SERVER})", "{{instance}} {{mode}}"),), 8),
            Panel("Noise of waits", LINES, "s",
                  "Waits up to this are taken for noise and make nobody late (lightllm_otel_collective_noise_seconds).",
                  (Query("max by (instance, mode) (lightllm_otel_collective_noise_seconds{$SERVER})", "{{instance}} {{mode}}"),), 8,
                  empty="No collectives: one rank, or none was sampled"),
        )),
    ),
)  # fmt: skip
