// Live page of a running server: five panels, each with its time window.

function drawLive(main, data) {
  if (!data.version || !data.phases.length) {
    main.append(element("h1", {}, data.name || "LightLLM"), data.version ? factsLine(data) : "", data.version ? drawStuck(data) : "", drawWaiting(data));
    if (data.version) main.append(drawHealth(data));
    return;
  }
  main.append(element("h1", {}, data.name), factsLine(data), drawStuck(data));
  main.append(drawLoad(data), drawDecode(data), drawRanks(data), drawSlowest(data), drawHealth(data));
}

function factsLine(data) {
  const { gpu_name: gpu, tp, lightllm, clock } = data.facts;
  const parts = [gpu || (clock === "host" ? t("no GPU: times are from the clock of the host") : null), tp ? `TP ${tp}` : null, data.facts.dtype,
    lightllm ? `LightLLM ${lightllm}` : null, t("level {level}", { level: data.level || "–" })];
  return element("p", { class: "facts" }, parts.filter(Boolean).join(" · "));
}

function drawWaiting(data) {
  const last = data.version ? data.freshness.last_step : null;
  const text = !data.version ? t("Waiting for the exporter.") : last === null ? t("No steps yet. Send a request to the server; this page updates itself.")
    : t("No steps in the last hour. The last one began {ago}.", { ago: ago(last) });
  return element("p", { class: "empty" }, text);
}

function drawStuck(data) {
  const stuck = data.freshness.ranks.filter((each) => each.in_flight > 5);
  return notes(stuck.map((each) => t("Rank {rank} has been in step {step} for {time}. Run lightllm-otel doctor --stuck for details.",
    { rank: each.rank, step: each.step, time: seconds(each.in_flight) })));
}

function panel(id, title, note, ...body) {
  return element("section", { "aria-labelledby": id }, element("h2", { id }, t(title)), note ? element("p", { class: "window" }, note) : null, ...body);
}

function windowName(data, name) {
  const time = minutes(data.windows[name]);
  return name === "now" ? t("last {time}", { time }) : data.windows.hour > 3540 ? t("last hour") : t("since the start, {time}", { time });
}
const asOf = (data) => t("as of {when}", { when: clock(data.at) });
const minutes = (value) => (value < 100 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`);
const ago = (value) => t("{time} ago", { time: value < 1 ? "1 s" : minutes(value) });
const kindName = (phase) => `${t(phase.phase)} · ${phase.mode === "graph" ? t("CUDA graph") : t("eager")}`;
const scroll = (name, ...body) => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, ...body);

// 1. GPU activity, and shares of operators in prefill and decode.

const LOAD = [["prefill", "prefill"], ["decode", "decode"], ["mixed", "mixed"], ["host", "idle, host busy"], ["no_requests", "idle, no requests"]];

function drawLoad(data) {
  const body = element("figure", {}, element("h3", {}, t("GPU activity"), element("small", {}, `${t("share of time")} · ${asOf(data)}`)));
  const shown = LOAD.filter(([name]) => name !== "mixed" || data.load.hour[name]);
  for (const name of ["now", "hour"]) {
    const load = data.load[name], whole = LOAD.reduce((sum, [each]) => sum + load[each], 0);
    if (!whole) continue;
    body.append(element("p", { class: "bar" }, windowName(data, name)),
      drawStack(t("GPU activity"), shown.map(([each, words]) => ({ name: t(words), short: t(words), value: load[each] / whole, text: percent(load[each] / whole), fill: `var(--${each})` }))));
  }
  body.append(loadLegend(data, shown));
  if (data.load.minutes.length > 1) body.append(drawMinutes(data, shown));
  const phases = data.phases.filter((each) => each.operators.length);
  const shares = element("div", { class: "pair" }, phases.map((phase) => figure(kindName(phase),
    `${windowName(data, phase.of)}, ${t("{count} steps sampled", { count: plain((phase.of === "now" ? phase.step : phase.hour).sampled) })}`,
    drawShares(phase.operators, halfWidth(), `${t("Share of each operator")}, ${kindName(phase)}`),
    element("p", { class: "legend" }, element("span", {}, element("i", { class: "tick" }), windowName(data, "hour"))))));
  return panel("load", "Prefill and decode", null, body, phases.length ? shares : element("p", { class: "empty" }, t("No sampled step in the last hour: step-level times only.")));
}

function loadLegend(data, shown) {
  const share = (window, name) => { const load = data.load[window]; return load[name] / (LOAD.reduce((sum, [each]) => sum + load[each], 0) || 1); };
  return scroll(t("GPU activity"), table([t("the GPUs"), windowName(data, "now"), windowName(data, "hour")], shown.map(([name, words]) => [
    swatch(t(words), `var(--${name})`), percent(share("now", name)), percent(share("hour", name))])));
}

function drawMinutes(data, shown) {
  const width = fullWidth(), height = 96, left = 4, bottom = 76, columns = data.load.minutes;
  const cell = (width - left) / 60, names = LOAD.map(([name]) => name);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("Last hour, by minute") });
  columns.forEach((column, index) => {
    const whole = column.reduce((sum, each) => sum + each, 0) || 1, x = width - (columns.length - index) * cell;
    let y = bottom;
    for (const [name, words] of shown) {
      const tall = (column[names.indexOf(name)] / whole) * bottom;
      y -= tall;
      if (tall > 0) svg.append(element("rect", { x, y, width: Math.max(cell - 1, 1), height: tall, fill: `var(--${name})` }, tip(`${t(words)}: ${percent(tall / bottom)}`)));
    }
  });
  svg.append(element("line", { class: "axis", x1: left, x2: width, y1: bottom, y2: bottom }));
  for (const at of width < 600 ? [60, 30, 0] : [60, 45, 30, 15, 0]) svg.append(label(at === 60 ? left : width - at * cell, height - 4, at ? t("{time} ago", { time: `${at} min` }) : t("now"), at === 60 ? "start" : at ? "middle" : "end", true));
  return element("div", { class: "hour" }, element("p", { class: "bar" }, t("Last hour, by minute")), svg);
}

// 2. The decode step by operator.

function drawDecode(data) {
  const found = data.phases.filter((each) => each.phase !== "prefill");
  if (!found.length) return panel("decode", "Decode step", null, element("p", { class: "empty" }, t("No decode step in the last hour.")));
  return panel("decode", "Decode step", null, found.map((phase) => drawDecodeOf(data, phase)));
}

function drawDecodeOf(data, phase) {
  const step = phase.step.steps ? phase.step : phase.hour, window = windowName(data, phase.step.steps ? "now" : "hour");
  const cards = element("div", { class: "cards" },
    card(seconds(step.mean), t("per step, all steps")), card(plain(step.tokens_per_second), t("tokens/s, including idle time")),
    card(`${plain(step.batch)} × ${plain(step.context)}`, t("requests × context")), card(plain(step.steps), t("steps of all ranks")),
    card(plain(step.sampled), t("of these, sampled")));
  const head = element("h3", { class: "kind" }, kindName(phase), element("small", {}, `${window} · ${asOf(data)}`));
  if (!phase.operators.length) {
    const reason = data.coverage.graphs ? ` (${data.coverage.graphs})` : "";
    return [head, cards, element("p", { class: "empty" }, t(phase.mode === "graph" && !data.coverage.instrumented_graphs
      ? "Step-level times only: the CUDA graphs have no instrumented graphs{reason}." : "No sampled step in the last hour: step-level times only.", { reason }))];
  }
  const whole = phase.operators.reduce((sum, each) => sum + Math.max(each.seconds_per_step, 0), 0);
  const parts = phase.operators.map((each) => ({ name: each.operator, value: each.seconds_per_step / whole, text: `${seconds(each.seconds_per_step)}, ${percent(each.share)}`, fill: colour(each.operator) }));
  return [head, cards,
    figure(t("Average sampled step"), `${seconds(whole)} · ${windowName(data, phase.of)}`, drawStack(t("Average sampled step"), parts, 44),
      scroll(t("Operators"), liveTable(phase.operators))),
    phase.example ? drawExample(phase.example, ago(phase.example.age)) : ""];
}

function liveTable(operators) {
  const expected = operators.some((each) => each.slowdown !== null);
  return table(["operator", "share", "step", "call", "calls", expected ? "vs. baseline" : null].filter(Boolean).map((each) => t(each)), operators.map((each) => [
    swatch(each.operator, colour(each.operator)), percent(each.share), seconds(each.seconds_per_step), seconds(each.seconds_per_call), plain(each.calls_per_step),
    ...(!expected ? [] : [each.slowdown === null ? "–" : element("span", { class: each.slowdown > 1.02 ? "slower" : each.slowdown < 0.98 ? "faster" : null }, `× ${each.slowdown.toFixed(2)}`)])]));
}

// 3. all_reduce by rank.

function drawRanks(data) {
  const { tp, rows, ranks, spans_hosts: spans } = data.collectives;
  const empty = (text) => panel("ranks", "all_reduce by rank", null, element("p", { class: "empty" }, t(text)));
  if (tp === 1) return empty("TP 1: one GPU has the whole model, so there is no all_reduce.");
  if (!rows.length) return empty(spans ? "The group spans several hosts. This exporter sees only its own ranks, so it cannot separate transfer from wait." : "No step has been compared across ranks yet.");
  const phases = ["decode", "mixed", "prefill"].filter((phase) => rows.some((row) => row.phase === phase));
  return panel("ranks", "all_reduce by rank", t("Transfer: the shortest time of all ranks. Wait: how long a rank waits for the last one. Means per call."),
    phases.map((phase) => drawRanksOf(data, phase, ranks, rows.filter((row) => row.phase === phase))));
}

function drawRanksOf(data, phase, ranks, rows) {
  const own = rows.filter((row) => row.operator === "all_reduce"), known = own.filter((row) => row.transfer !== null);
  const noise = Math.max(...Object.values(data.collectives.noise));
  const mean = (of, among) => among.reduce((sum, row) => sum + row.calls * of(row), 0) / among.reduce((sum, row) => sum + row.calls, 0);
  const transfer = known.length ? mean((row) => row.transfer, known) : 0;
  const waits = own.length ? ranks.map((_, index) => mean((row) => row.waits[index], own)) : [];
  const whole = transfer + Math.max(0, ...waits);
  const bars = !whole ? [] : ranks.flatMap((rank, index) => {
    const wait = waits[index];
    const text = `${t("transfer")} ${known.length ? seconds(transfer) : "–"} · ${t("wait")} ${wait ? seconds(wait) : "0"}`;
    return [element("p", { class: "bar" }, `${t("rank")} ${rank} · ${text}`), drawStack(`${t("rank")} ${rank}`, [
      { name: t("transfer"), short: t("transfer"), value: transfer / whole, text: seconds(transfer), fill: "var(--op-all_reduce)" },
      { name: t("wait"), short: t("wait"), value: wait / whole, text: seconds(wait), fill: "var(--wait)" }], 22)];
  });
  const heads = [t("after"), t("operator"), t("calls"), t("transfer"), ...ranks.map((rank) => `${t("wait")} ${rank}`), ...ranks.map((rank) => `${t("last")} ${rank}`)];
  const cells = rows.map((row) => [t(row.site), row.operator, plain(row.calls), row.transfer === null ? "–" : seconds(row.transfer), ...row.waits.map((each) => (each ? seconds(each) : "0")),
    ...row.last.map((each) => (row.known ? percent(each / row.known, 0) : "–"))]);
  return figure(t(phase), [windowName(data, rows[0].of), asOf(data), noise ? t("only waits above {noise} count", { noise: seconds(noise) }) : null].filter(Boolean).join(" · "),
    bars, scroll(`all_reduce, ${t(phase)}`, table(heads, cells)),
    element("p", { class: "legend" }, t("last: how often this rank arrived last and all others waited, as a share of the calls whose last rank is known.")),
    rows.some((row) => row.transfer === null) ? element("p", { class: "legend" }, t("–: unknown, because GPUs waited for their hosts in every call.")) : null);
}

// 4. The slowest steps.

function drawSlowest(data) {
  const body = data.slowest.map((of) => {
    const usual = new Map(data.phases.filter((each) => each.phase === of.phase).map((each) => [each.mode, each]));
    const longest = of.longest ? t("The slowest of all steps took {time} (step {step}, {ago}).", { time: seconds(of.longest.seconds), step: of.longest.number, ago: ago(of.longest.age) }) : "";
    const list = element("ol", { class: "slow" }, of.steps.map((step) => drawSlow(step, usual.get(step.mode), of.steps[0].seconds)));
    return figure(t(of.phase), `${t("sampled steps")} · ${asOf(data)}`, element("p", { class: "window" }, longest), of.steps.length ? list : element("p", { class: "empty" }, t("None of these steps was sampled.")));
  });
  return panel("slow", "Slowest steps", t("in the last {time}", { time: minutes(data.windows.slow) }), body.length ? element("div", { class: "pair" }, body) : element("p", { class: "empty" }, t("No steps in this period.")));
}

function drawSlow(step, usual, most) {
  const operators = Object.entries(step.operators).sort((one, two) => two[1] - one[1]);
  const mean = usual && usual.hour.mean;
  const extra = usual ? operators.map(([name, took]) => [name, took - (usual.operators.find((each) => each.operator === name) || { seconds_per_step: 0 }).seconds_per_step]).sort((one, two) => two[1] - one[1])[0] : null;
  const facts = [mean ? t("{times} × the mean", { times: (step.seconds / mean).toFixed(2) }) : null, t("step {step}", { step: step.number }), t("batch {batch}", { batch: step.batch }),
    t("{tokens} new tokens", { tokens: plain(step.tokens) }), `${t("rank")} ${step.rank}`, ago(step.age)];
  const words = operators.slice(0, 3).map(([name, took]) => `${name} ${seconds(took)}`);
  if (extra && extra[1] > 0.02 * step.seconds) words.push(t("largest excess over its mean: {operator}, {time}", { operator: extra[0], time: seconds(extra[1]) }));
  return element("li", {}, element("p", { class: "bar" }, element("b", {}, seconds(step.seconds)), ` ${facts.filter(Boolean).join(" · ")}`),
    drawStack(t("step {step}", { step: step.number }), operators.map(([name, took]) => ({ name, value: Math.max(took, 0) / most, text: seconds(took), fill: colour(name) })), 22, halfWidth()),
    element("p", { class: "legend" }, words.join(" · ")));
}

// 5. Coverage and age of the data, and the overhead of the plugin.

function drawHealth(data) {
  const { coverage, freshness, cost } = data;
  const counts = (found) => Object.entries(found).map(([name, count]) => `${name} ${plain(count)}`).join(", ") || "0";
  const rank = (each) => `${t("rank")} ${each.rank}: ${t("step {step}", { step: each.step })}${each.in_flight ? `, ${t("in flight for {time}", { time: seconds(each.in_flight) })}` : ""}`;
  const list = (title, note, rows) => figure(t(title), note, element("dl", {}, rows.filter(Boolean).flatMap(([name, value]) => [element("dt", {}, t(name)), element("dd", {}, value)])));
  return panel("health", "Coverage, freshness, overhead", null, element("div", { class: "triple" },
    list("Coverage", windowName(data, "hour"), [
      ["steps, all ranks", plain(coverage.steps)],
      ["of these, with operator times", `${plain(coverage.sampled)} (${percent(coverage.steps ? coverage.sampled / coverage.steps : null)})`],
      ["share of their time in named operators", percent(coverage.named_share)],
      ["operators found", `${coverage.slots - coverage.missing.length} / ${coverage.slots}${coverage.missing.length ? `; ${t("missing")}: ${coverage.missing.join(", ")}` : ""}`],
      ["instrumented CUDA graphs", `${coverage.instrumented_graphs}${coverage.instrumented_graphs || !coverage.graphs ? "" : ` (${coverage.graphs})`}`],
      ["step-level times only, since the start", counts(coverage.whole_only)], ["not compared across ranks, since the start", counts(coverage.unmatched)]]),
    list("Freshness", asOf(data), [
      ["last step", freshness.last_step === null ? "–" : ago(freshness.last_step)],
      ["oldest step not yet counted", freshness.unread ? seconds(freshness.unread) : t("none")],
      ["ranks", freshness.ranks.length ? freshness.ranks.map((each) => element("div", {}, rank(each))) : "–"]]),
    list("Overhead", windowName(data, "now"), [
      ["CPU time of the model processes", percent(cost.hook, 3)],
      ["GPU time added to the steps by sampling (hour)", cost.gpu === null ? "–" : percent(cost.gpu, 3)],
      ["sampled step relative to its neighbours", cost.distortion === null ? "–" : `× ${cost.distortion.toFixed(3)}`],
      ["CPU time of the exporter", `${percent(cost.exporter, 2)} ${t("of one core")}`],
      ["memory of the exporter", bytes(cost.memory_bytes)],
      ["open live pages", plain(cost.listeners)],
      ["dropped, since the start", counts(cost.dropped)], ["errors, since the start", counts(cost.errors)]])));
}
