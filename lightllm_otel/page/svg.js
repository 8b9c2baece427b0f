// Elements, numbers with units, scales and axes for all charts.

function element(name, attributes, ...children) {
  const svg = SVG_NAMES.has(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") made.style.cssText = value; // the Content-Security-Policy refuses style attributes
    else if (value !== null && value !== undefined) made.setAttribute(key, typeof value === "number" ? +value.toFixed(2) : value);
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined) made.append(child);
  }
  return made;
}
const SVG_NAMES = new Set(["svg", "g", "rect", "line", "circle", "path", "text", "title", "polygon"]);

// Charts use the available width, so that their text stays readable on a phone.
const room = () => document.querySelector("main").clientWidth - (innerWidth <= 760 ? 58 : 80);
const fullWidth = () => Math.max(240, Math.min(980, room()));
const halfWidth = () => (innerWidth <= 760 ? fullWidth() : Math.max(240, Math.min(480, (room() - 56) / 2)));

const tip = (text) => element("title", {}, text);
const label = (x, y, text, anchor, soft) =>
  element("text", { x, y, "text-anchor": anchor || "start", class: soft ? "soft" : null }, text);
const colour = (operator) => `var(--op-${operator}, var(--soft))`;

function figure(title, note, ...body) {
  return element("figure", {}, element("h3", {}, title, note ? element("small", {}, note) : null), ...body);
}

function withUnit(value, steps, digits) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const [factor, unit] = steps.find(([each]) => Math.abs(value) * each >= 1) || steps[steps.length - 1];
  return `${Number((value * factor).toPrecision(digits || 3))} ${unit}`;
}
const seconds = (value) => withUnit(value, [[1, "s"], [1e3, "ms"], [1e6, "µs"], [1e9, "ns"]]);
const bytes = (value) => withUnit(value, [[1e-12, "TB"], [1e-9, "GB"], [1e-6, "MB"], [1e-3, "kB"], [1, "B"]]);
const flops = (value) => withUnit(value, [[1e-15, "PFLOP"], [1e-12, "TFLOP"], [1e-9, "GFLOP"], [1e-6, "MFLOP"], [1, "FLOP"]]);
const percent = (share, digits) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits ?? 1)} %`);
const signed = (share) => `${Math.abs(share) < 5e-4 ? "" : share > 0 ? "+" : "−"}${Math.abs(100 * share).toFixed(1)} %`;
const plain = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toLocaleString("en"));

const linear = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);
const logarithmic = (low, high, from, to) => {
  const scale = linear(Math.log(low), Math.log(high), from, to);
  return (value) => scale(Math.log(value));
};

function decades(low, high) {
  const found = [];
  for (let power = Math.ceil(Math.log10(low) - 1e-9); power <= Math.floor(Math.log10(high) + 1e-9); power += 1) found.push(10 ** power);
  return found;
}

function rounds(low, high, wanted) {
  const raw = (high - low) / wanted;
  const size = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((each) => each * size).find((each) => each >= raw) || size;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(10)));
  return found;
}

function table(heads, rows) {
  const head = element("tr", {}, heads.map((text) => element("th", {}, text)));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, rows.map((cells) =>
    element("tr", {}, cells.map((cell) => element("td", {}, cell))))));
}

// Returns black or white, whichever is readable on a colour of the style sheet.
function inkOn(fill) {
  const name = /--[\w-]+/.exec(fill)[0];
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255).map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

// Stacked bar. Each part is {name, short, value (0 to 1), text, fill}.
function drawStack(title, parts, height, room) {
  const width = room || fullWidth(), tall = height || 30;
  const words = parts.filter((each) => each.value > 0).map((each) => `${each.name} ${each.text}`).join("; ");
  const svg = element("svg", { viewBox: `0 0 ${width} ${tall}`, role: "img", "aria-label": `${title}: ${words}` });
  let at = 0;
  for (const each of parts) {
    const wide = Math.max(each.value, 0) * width;
    if (wide > 0) svg.append(element("rect", { x: at, y: 0, width: Math.max(wide - 1, 0.3), height: tall, rx: wide > 6 ? 2 : 0, fill: each.fill }, tip(`${each.name}: ${each.text}`)));
    const name = each.short || each.name;
    const needed = [...name].reduce((sum, each) => sum + (each > "\u2e7f" ? 13 : 8), 16); // Chinese characters are wider
    if (wide > needed) svg.append(element("text", { x: at + 8, y: tall / 2 + 4, class: "on", style: `fill:${inkOn(each.fill)}` }, name));
    at += wide;
  }
  return svg;
}

const clock = (at) => new Date(at * 1000).toLocaleTimeString(LANGUAGE === "zh" ? "zh-CN" : "en-GB");
const when = (at) => new Date(at * 1000).toLocaleString(LANGUAGE === "zh" ? "zh-CN" : "en-GB");

function swatch(name, fill) {
  return element("span", {}, element("i", { style: `background:${fill}` }), name);
}
