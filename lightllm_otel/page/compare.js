// Comparison of several runs with the first one.

function drawCompare(main, data) {
  main.append(element("h1", {}, `${data.first.name} against ${data.comparisons.map((each) => each.second.name).join(", ")}`));
  main.append(element("p", { class: "facts" }, [data.first, ...data.comparisons.map((each) => each.second)].map((each) =>
    `${each.name}: ${each.facts.model} on ${each.facts.tp} × ${each.facts.gpu_name}, ${each.repeats} repeat${each.repeats === 1 ? "" : "s"}`).join(" · ")));
  for (const each of data.comparisons) {
    main.append(element("h2", {}, each.second.name), notes(each.notes), drawChanges(each.rows), drawComparisonTable(each, data.first.name));
  }
}

const rowName = (row) => `${row.operator} · ${row.phase}${row.mode === "graph" ? " · graph" : ""}`;
const verdictColour = (row) => ({ slower: "var(--slower)", faster: "var(--faster)" })[row.verdict] || "var(--soft)";

function drawChanges(rows) {
  const shown = rows.filter((row) => row.operator === "step" || Math.abs(row.weight) > 1e-4).slice(0, 24);
  const row = 24, left = 190, right = 130, width = Math.max(fullWidth(), 560), height = shown.length * row + 26;
  const ends = shown.flatMap((each) => [...(each.interval || [each.change]), each.change, 0]);
  const reach = Math.max(Math.abs(Math.min(...ends)), Math.abs(Math.max(...ends)), 0.02) * 1.05;
  const x = linear(-reach, reach, left, width - right);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Change of each operator" });
  for (const at of rounds(-reach, reach, 8)) {
    const zero = Math.abs(at) < 1e-9;
    svg.append(element("line", { class: zero ? null : "grid", stroke: zero ? "var(--soft)" : null, x1: x(at), x2: x(at), y1: 0, y2: height - 22 }), label(x(at), height - 6, signed(at), "middle", true));
  }
  shown.forEach((each, index) => {
    const middle = index * row + row / 2;
    svg.append(label(left - 12, middle + 4, rowName(each), "end"));
    if (each.interval) svg.append(element("line", { x1: x(each.interval[0]), x2: x(each.interval[1]), y1: middle, y2: middle, stroke: verdictColour(each), "stroke-width": 2.5 }));
    svg.append(element("circle", { cx: x(each.change), cy: middle, r: 4.5, fill: verdictColour(each) }, tip(`${rowName(each)}: ${signed(each.change)}`)));
    const theory = each.expected === null ? null : each.expected - 1;
    if (theory !== null && Math.abs(theory) <= reach) {
      const at = x(theory);
      svg.append(element("polygon", { points: `${at},${middle - 6} ${at + 5},${middle} ${at},${middle + 6} ${at - 5},${middle}`, fill: "none", stroke: "var(--ink)" }, tip(`theory: ${signed(theory)}`)));
    }
    svg.append(label(width - right + 70, middle + 4, signed(each.change), "end"), label(width - right + 76, middle + 4, each.verdict === "slower" || each.verdict === "faster" ? each.verdict : "", "start", true));
  });
  return figure("Change in seconds per step", "95 % interval of each row; colour: significant over all rows together, and at least 1 %; ◇ theory", svg);
}

function drawComparisonTable(comparison, first) {
  const rows = comparison.rows.map((row) => [
    rowName(row), seconds(row.first), seconds(row.second), signed(row.change),
    row.interval ? `${signed(row.interval[0])} to ${signed(row.interval[1])}` : "–", row.expected === null ? "–" : signed(row.expected - 1),
    row.p === null ? "–" : row.p < 0.001 ? "< 0.001" : row.p.toFixed(3), percent(row.detectable), element("span", { class: row.verdict }, row.verdict),
  ]);
  return figure("Operators", "seconds per step of one rank; largest effect on the step first",
    scroll("Operators", table(["operator", first, comparison.second.name, "change", "95 %", "theory", "p (Holm)", "detectable", ""], rows)));
}
