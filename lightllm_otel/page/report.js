// Report on one run.

function drawReport(main, data) {
  const facts = Object.entries(data.facts).map(([name, value]) => `${name === "gpu_name" ? "GPU" : name.replace("_", " ")} ${value}`).join(" · ");
  const repeats = data.repeats === 1 ? t("one recording") : t("{count} repeats", { count: data.repeats });
  main.append(element("h1", {}, data.name), element("p", { class: "facts" }, `${facts} · ${repeats}`), notes(data.notes));
  main.append(element("div", { class: "cards" },
    card(percent(data.pace.busy), t("of the time in steps")),
    card(percent(data.pace.host), t("idle, host busy")),
    card(percent(data.pace.no_requests), t("idle, no requests")),
    card(plain(data.pace.output_tokens_per_second), t("output tokens/s, whole run"))));
  for (const phase of data.phases) drawPhase(main, phase);
  const roofline = drawRoofline(data);
  if (roofline) main.append(element("h2", {}, t("Against the hardware")), roofline);
  main.append(element("h2", {}, t("Over time")), drawTimeline(data.timeline));
}

function notes(lines) {
  return lines.length ? element("ul", { class: "notes" }, lines.map((line) => element("li", {}, line))) : "";
}

function card(value, words) {
  return element("div", { class: "card" }, element("b", {}, value), element("span", {}, words));
}

function drawPhase(main, phase) {
  const step = phase.step;
  main.append(element("h2", {}, kindName(phase)));
  main.append(element("div", { class: "cards" },
    card(seconds(step.mean), t("per step, {low} to {high}", { low: seconds(step.interval[0]), high: seconds(step.interval[1]) })),
    card(seconds(step.p99), t("99th percentile")),
    card(plain(step.tokens_per_second), t("tokens/s during steps")),
    card(`${plain(step.batch)} × ${plain(step.context)}`, t("requests × context")),
    card(percent(phase.utilisation.mfu), t("of peak FLOP/s (MFU)")),
    card(percent(phase.utilisation.mbu), t("of peak bandwidth (MBU)"))));
  if (!phase.operators.length) return;
  const sampled = t("{sampled} of {steps} steps sampled, 95 % intervals", step);
  main.append(figure(t("Share of each operator"), sampled, drawShares(phase.operators)));
  if (phase.example) main.append(drawExample(phase.example));
  main.append(figure(t("Operators"), t("per rank"), scroll(t("Operators"), operatorTable(phase.operators))));
  const wide = phase.collectives.length === 0;
  const pair = element("div", { class: wide ? null : "pair" });
  if (phase.layers) pair.append(drawLayers(phase.layers, wide ? fullWidth() : halfWidth()));
  for (const calls of phase.collectives) pair.append(drawCalls(calls));
  main.append(pair);
}

// The live page has no confidence intervals; there, a tick shows the share over the last hour.
function drawShares(operators, room, title) {
  const width = room || fullWidth(), narrow = width < 600;
  const row = 24, left = 104, right = narrow ? 118 : 220, height = operators.length * row + 24;
  const most = Math.max(...operators.map((each) => (each.interval ? each.interval[1] : Math.max(each.share, each.share_hour))), 0.01);
  const x = linear(0, most, left, width - right);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title || t("Share of each operator") });
  for (const at of rounds(0, most, narrow ? 3 : 6)) {
    svg.append(element("line", { class: "grid", x1: x(at), x2: x(at), y1: 0, y2: height - 20 }), label(x(at), height - 6, percent(at, 0), "middle", true));
  }
  const whisker = (at, middle, reach) => element("line", { class: "whisker", x1: x(at), x2: x(at), y1: middle - reach, y2: middle + reach });
  operators.forEach((each, index) => {
    const y = index * row, middle = y + row / 2 - 1;
    const [low, high] = each.interval || [each.share_hour, each.share_hour];
    const marks = each.interval
      ? [element("line", { class: "whisker", x1: x(low), x2: x(high), y1: middle, y2: middle }), whisker(low, middle, 3), whisker(high, middle, 3)]
      : [whisker(low, middle, 8)];
    const words = each.interval ? `${percent(low, 2)} to ${percent(high, 2)}` : `${percent(low, 2)} ${t("over the last hour")}`;
    svg.append(label(left - 10, middle + 4, each.operator, "end"));
    svg.append(element("g", {}, tip(`${each.operator}: ${percent(each.share, 2)}, ${words}`),
      element("rect", { x: left, y: y + 4, width: Math.max(x(each.share) - left, 1), height: row - 10, rx: 2, fill: colour(each.operator) }), marks));
    svg.append(label(width - right + 52, middle + 4, percent(each.share), "end"), label(width - right + 118, middle + 4, seconds(each.seconds_per_step), "end", true));
    if (!narrow) svg.append(label(width - right + 152, middle + 4, each.bound || "", "start", true));
  });
  return svg;
}

function drawExample(step, age) {
  const width = fullWidth(), height = 34;
  const whole = step.slices.reduce((sum, each) => sum + Math.max(each.seconds, 0), 0);
  const x = linear(0, whole, 0, width);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height + 18}`, role: "img", "aria-label": t("One step") });
  let at = 0;
  const seen = new Map();
  for (const each of step.slices) {
    const long = Math.max(each.seconds, 0);
    const layer = each.layer >= 0 ? `, ${t("layer")} ${each.layer}` : "";
    svg.append(element("rect", { x: x(at), y: 0, width: Math.max(x(long), 0.15), height, fill: colour(each.operator) }, tip(`${each.operator}${layer}: ${seconds(long)}`)));
    seen.set(each.operator, (seen.get(each.operator) || 0) + long);
    at += long;
  }
  svg.append(label(0, height + 15, "0", "start", true), label(width, height + 15, seconds(whole), "end", true));
  const legend = [...seen].sort((one, two) => two[1] - one[1]).map(([name]) => swatch(name, colour(name)));
  const note = `${t("number {number}, batch {batch}", step)}, ${age || t("the sampled step closest to the median")}`;
  return figure(t("Timeline of one step"), note, svg, element("p", { class: "legend" }, legend));
}

function operatorTable(operators) {
  const rows = operators.map((each) => [
    element("span", {}, element("i", { style: `background:${colour(each.operator)}` }), each.operator),
    percent(each.share), seconds(each.seconds_per_step), seconds(each.seconds_per_layer), seconds(each.seconds_per_call), plain(each.calls_per_step),
    each.flops_per_second ? `${flops(each.flops_per_second)}/s` : "–", each.bytes_per_second ? `${bytes(each.bytes_per_second)}/s` : "–",
    each.bus_bytes_per_second ? `${bytes(each.bus_bytes_per_second)}/s` : "–", percent(each.busy, 0), each.bound || "–",
  ]);
  return table(["operator", "share", "step", "layer", "call", "calls", "computed", "moved", "bus", "of peak", "bound by"].map((each) => t(each)), rows);
}

function drawLayers(layers, width) {
  const left = 84, cell = (width - left) / layers.layers, row = 18, height = layers.operators.length * row + 22;
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("Layers and operators") });
  layers.operators.forEach((operator, index) => {
    const values = layers.seconds[index], most = Math.max(...values);
    svg.append(label(left - 8, index * row + 13, operator, "end", true));
    values.forEach((value, layer) => svg.append(element("rect",
      { x: left + layer * cell, y: index * row, width: cell + 0.3, height: row - 2, fill: `rgb(var(--heat) / ${(0.06 + 0.94 * (value / most)).toFixed(3)})` },
      tip(`${operator}, layer ${layer}: ${seconds(value)}`))));
  });
  for (const at of rounds(0, layers.layers - 1, 6)) svg.append(label(left + (at + 0.5) * cell, height - 6, at, "middle", true));
  return figure(t("Layer × operator"), t("seconds per step; strongest colour: the longest of its row"), svg);
}

function drawCalls(calls) {
  const width = halfWidth(), height = 170, left = 8, bottom = height - 36;
  const edges = calls.edges, most = Math.max(...calls.counts);
  const x = logarithmic(edges[0], edges[edges.length - 1], left, width - 8);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("Distribution of calls") });
  calls.counts.forEach((count, index) => {
    const tall = (count / most) * (bottom - 32);
    svg.append(element("rect", { x: x(edges[index]) + 0.5, width: Math.max(x(edges[index + 1]) - x(edges[index]) - 1, 0.5), y: bottom - tall, height: tall, fill: colour(calls.operator) },
      tip(`${seconds(edges[index])} to ${seconds(edges[index + 1])}: ${count} calls`)));
  });
  svg.append(element("line", { class: "axis", x1: left, x2: width - 8, y1: bottom, y2: bottom }));
  const size = Math.max(1, Math.ceil(edges.length / 6));
  edges.forEach((edge, index) => { if (index % size === 0) svg.append(label(x(edge), bottom + 15, seconds(edge), index ? (x(edge) > width - 40 ? "end" : "middle") : "start", true)); });
  for (const [name, value, top] of [["p50", calls.p50, 8], ["p99", calls.p99, 22]]) {
    const end = x(value) > width - 110;
    svg.append(element("line", { class: "whisker", x1: x(value), x2: x(value), y1: top - 6, y2: bottom, "stroke-dasharray": "3 3" }),
      label(x(value) + (end ? -5 : 5), top, `${name} ${seconds(value)}`, end ? "end" : "start", true));
  }
  const site = calls.site === "none" ? "" : ` after ${calls.site}`;
  return figure(`${calls.operator}${site}`, t("{count} calls of {size} (median)", { count: plain(calls.calls), size: bytes(calls.payload_bytes) }), svg);
}

function drawRoofline(data) {
  const points = data.phases.flatMap((phase) => phase.operators.filter((each) => each.flops_per_second > 0 && each.flops_per_byte > 0)
    .map((each) => ({ ...each, phase: phase.phase, mode: phase.mode })));
  if (!data.machine || !points.length) return null;
  const { flops: peak, memory_bytes_per_second: bandwidth, ridge_flops_per_byte: ridge } = data.machine;
  const width = fullWidth(), height = 380, left = 70, bottom = height - 40;
  const lowX = Math.min(0.5, ...points.map((each) => each.flops_per_byte)) / 1.5, highX = Math.max(ridge * 10, ...points.map((each) => each.flops_per_byte * 2));
  const lowY = Math.min(...points.map((each) => each.flops_per_second)) / 2, highY = Math.max(peak, ...points.map((each) => each.flops_per_second)) * 2;
  const x = logarithmic(lowX, highX, left, width - 20), y = logarithmic(lowY, highY, bottom, 14);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("Roofline") });
  for (const at of decades(lowX, highX)) svg.append(element("line", { class: "grid", x1: x(at), x2: x(at), y1: 14, y2: bottom }), label(x(at), bottom + 16, at, "middle", true));
  for (const at of decades(lowY, highY)) svg.append(element("line", { class: "grid", x1: left, x2: width - 20, y1: y(at), y2: y(at) }), label(left - 8, y(at) + 4, `${flops(at)}/s`, "end", true));
  const startX = Math.max(lowX, lowY / bandwidth);
  svg.append(element("path", { d: `M${x(startX)} ${y(startX * bandwidth)} L${x(ridge)} ${y(peak)} L${width - 20} ${y(peak)}`, fill: "none", stroke: "var(--ink)", "stroke-width": 1.6 }));
  svg.append(label(width - 24, y(peak) - 7, `${flops(peak)}/s`, "end", true), label(x(ridge), bottom + 30, `FLOPs per byte; ridge ${plain(ridge)}`, "middle", true));
  const labels = [];
  for (const each of points) {
    const size = 4 + 12 * Math.sqrt(each.share);
    svg.append(element("circle", { cx: x(each.flops_per_byte), cy: y(each.flops_per_second), r: size, fill: `var(--${each.phase})`, "fill-opacity": 0.55, stroke: `var(--${each.phase})` },
      tip(`${each.operator}, ${each.phase} · ${each.mode}: ${flops(each.flops_per_second)}/s at ${plain(each.flops_per_byte)} FLOPs per byte, ${percent(each.busy)} of the ${each.bound === "host" ? "hardware" : each.bound} limit`)));
    if (each.share > 0.05) labels.push({ x: x(each.flops_per_byte) + size + 4, y: y(each.flops_per_second) + 4, text: each.operator });
  }
  for (const each of apart(labels)) svg.append(label(each.x, each.y, each.text, "start", true));
  const phases = [...new Set(points.map((each) => each.phase))];
  return figure(t("Roofline"), t("{gpu}, peak rates of its data sheet; area: share of the phase", data.machine), svg, element("p", { class: "legend" }, phases.map((each) => swatch(t(each), `var(--${each})`))));
}

// Moves labels down that would overlap others.
function apart(labels) {
  const placed = [];
  for (const each of labels.sort((one, two) => one.y - two.y)) {
    const near = (other) => Math.abs(other.y - each.y) < 12 && each.x < other.x + 7 * other.text.length && other.x < each.x + 7 * each.text.length;
    while (placed.some(near)) each.y += 3;
    placed.push(each);
  }
  return placed;
}

function drawTimeline(timeline) {
  const width = fullWidth(), height = 220, left = 56, bottom = height - 26, points = timeline.points;
  const last = Math.max(...points.map((each) => each.at)) || 1;
  const values = points.map((each) => each.seconds), low = Math.min(...values) / 1.2, high = Math.max(...values) * 1.2;
  const x = linear(0, last, left, width - 10), y = logarithmic(low, high, bottom, 10);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("Steps over time") });
  const ticks = decades(low, high).length > 1 ? decades(low, high) : rounds(low, high, 4);
  for (const at of ticks) svg.append(element("line", { class: "grid", x1: left, x2: width - 10, y1: y(at), y2: y(at) }), label(left - 8, y(at) + 4, seconds(at), "end", true));
  for (const at of rounds(0, last, 8)) svg.append(label(x(at), bottom + 17, `${at} s`, "middle", true));
  for (const each of points) {
    svg.append(element("circle", { cx: x(each.at), cy: y(each.seconds), r: 2.4, fill: `var(--${each.phase})`, "fill-opacity": 0.7 },
      tip(`${each.phase}, batch ${each.batch}: ${seconds(each.seconds)} at ${plain(each.at)} s`)));
  }
  const phases = [...new Set(points.map((each) => each.phase))];
  return figure(t("Steps"), t("{steps} steps of one rank; each point is the longest of neighbouring steps", { steps: plain(timeline.steps) }), svg, element("p", { class: "legend" }, phases.map((each) => swatch(t(each), `var(--${each})`))));
}
