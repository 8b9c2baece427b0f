// Draws a dashboard's panels from query results, with Grafana's own components where it exports them (@grafana/ui): panel frame, lines,
// stacks, single values, bars, tables. Heatmaps and scatter plots it does not export; those are drawn here.
// By require: their ES modules import CommonJS packages in a way that a bundler does not follow.
require("uplot/dist/uPlot.min.css");
const React = require("react");
const { createRoot } = require("react-dom/client");
const { createTheme, FieldType, getDisplayProcessor, ThemeContext, toDataFrame, dateTime } = require("@grafana/data");
const { BarGauge, BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } = require("@grafana/ui");

const { dashboard, answers, from, to, dark } = (window as any).RENDER;
const theme = createTheme({ colors: { mode: dark ? "dark" : "light" } });
const range = { from: dateTime(from), to: dateTime(to), raw: { from: "now-1h", to: "now" } };
const WIDTH = 1600, CELL = 30, GAP = 8;
const LINES = { drawStyle: "line", lineInterpolation: "linear", barAlignment: 0, showPoints: "never", pointSize: 5, axisPlacement: "auto",
  hideFrom: { legend: false, tooltip: false, viz: false }, thresholdsStyle: { mode: "off" }, scaleDistribution: { type: "linear" },
  stacking: { mode: "none", group: "A" }, gradientMode: "none", axisColorMode: "text", axisGridShow: true };

function shown(field: any, config: any, index: number) {
  field.config = { ...config, custom: { ...LINES, ...config.custom, showPoints: "never", minWidth: 90 } };
  field.state = { seriesIndex: index };
  if (!field.config.color) field.config.color = { mode: "palette-classic" };
  field.display = getDisplayProcessor({ field, theme, timeZone: "utc" });
  return field;
}

function lines(panel: any, series: any[], width: number, height: number) {
  const frames = series.map((each, index) => {
    const frame = toDataFrame({ fields: [
      { name: "Time", type: FieldType.time, values: each.times },
      { name: "Value", type: FieldType.number, values: each.values },
    ] });
    shown(frame.fields[1], { ...panel.fieldConfig.defaults, displayName: each.name }, index);
    frame.fields[0].display = getDisplayProcessor({ field: frame.fields[0], theme, timeZone: "utc" });
    return frame;
  });
  return <TimeSeries frames={frames} timeRange={range as any} timeZone="utc" width={width} height={height}
    legend={panel.options.legend} options={panel.options} />;
}

function number(config: any, value: number, name: string) {
  const field = shown({ name, type: FieldType.number, values: [value], config: {} }, config, 0);
  return { field, value: field.display(value) };
}

function stat(panel: any, series: any[], width: number, height: number) {
  const { value } = number({ ...panel.fieldConfig.defaults, color: { mode: "thresholds" } }, series[0].values.at(-1), series[0].name);
  return <BigValue value={value} width={width} height={height} theme={theme} colorMode={"value" as any} graphMode={"none" as any}
    justifyMode={"auto" as any} />;
}

function bars(panel: any, series: any[], width: number, height: number) {
  const sorted = [...series].sort((a, b) => b.values.at(-1) - a.values.at(-1));
  const most = panel.fieldConfig.defaults.max ?? Math.max(...sorted.map((each) => each.values.at(-1)));
  const each = Math.max(Math.min(Math.floor(height / sorted.length) - 4, 40), 14);
  return <div>{sorted.slice(0, Math.floor(height / (each + 4))).map((one, index) => {
    const { field, value } = number({ ...panel.fieldConfig.defaults, min: 0, max: most }, one.values.at(-1), one.name);
    const colour = theme.visualization.palette[index % theme.visualization.palette.length];
    return <div key={one.name} style={{ marginBottom: 4 }}><BarGauge field={{ ...field.config, min: 0, max: most } as any} display={field.display}
      value={{ ...value, title: one.name, color: theme.visualization.getColorByName(colour) }} orientation={"horizontal" as any}
      displayMode={"basic" as any} theme={theme} width={width} height={each} itemSpacing={4} lcdCellWidth={8}
      text={{ titleSize: 12, valueSize: 13 }} /></div>;
  })}</div>;
}

function table(panel: any, rows: any, width: number, height: number) {
  const units = Object.fromEntries(panel.fieldConfig.overrides.map((each: any) =>
    [each.matcher.options, each.properties.find((one: any) => one.id === "unit")?.value]));
  const hidden = rows.columns.indexOf("known"); // an info's 1
  if (hidden >= 0) { rows.columns.splice(hidden, 1); rows.numbers.splice(hidden, 1); rows.rows.forEach((row: any[]) => row.splice(hidden, 1)); }
  const frame = toDataFrame({ fields: rows.columns.map((name: string, at: number) => ({
    name, type: rows.numbers[at] ? FieldType.number : FieldType.string, values: rows.rows.map((row: any[]) => row[at]) })) });
  frame.fields.forEach((field, index) => {
    const unit = units[field.name] ?? (rows.numbers[index] ? panel.fieldConfig.defaults.unit : undefined);
    shown(field, { ...panel.fieldConfig.defaults, unit, color: undefined, noValue: "–" }, index);
    field.state = { displayName: field.name, scopedVars: {} };
  });
  return <Table data={frame} width={width} height={height} />;
}

function heatmap(panel: any, grid: any, width: number, height: number) {
  const left = 62, bottom = 18, wide = (width - left) / grid.times.length, high = (height - bottom) / grid.names.length;
  const most = Math.max(...grid.cells.flat());
  const unit = getDisplayProcessor({ field: { type: FieldType.number, config: { unit: panel.fieldConfig.defaults.unit } } as any, theme });
  const text = { fill: theme.colors.text.secondary, fontSize: 11, fontFamily: theme.typography.fontFamily };
  const label = (name: string) => { const shown = unit(Number(name)); return name === "+Inf" ? "+Inf" : `${shown.text}${shown.suffix ?? ""}`; };
  return <svg width={width} height={height}>
    {grid.cells.map((row: number[], y: number) => row.map((count, x) => count > 0 && <rect key={`${x}-${y}`} x={left + x * wide}
      y={height - bottom - (y + 1) * high} width={Math.max(wide - 1, 0.5)} height={high - 1}
      fill={`rgba(87, 148, 242, ${0.12 + 0.88 * Math.sqrt(count / most)})`} />))}
    {grid.names.map((name: string, y: number) => <text key={name} {...text} x={left - 6} y={height - bottom - y * high} textAnchor="end">{label(name)}</text>)}
    {[0.15, 0.5, 0.85].map((at) => <text key={at} {...text} x={left + at * (width - left)} y={height - 3} textAnchor="middle">
      {new Date(from + at * (to - from)).toISOString().slice(11, 19)}</text>)}
  </svg>;
}

function scatter(panel: any, series: any[], width: number, height: number) {
  const left = 74, bottom = 34, top = 8, right = 90, points = series.flatMap((each) => each.points);
  const decades = (values: number[]) => [Math.floor(Math.log10(Math.min(...values))), Math.ceil(Math.log10(Math.max(...values)))];
  const [xs, ys] = [decades(points.map((each) => each.x)), decades(points.map((each) => each.y))];
  const x = (value: number) => left + (width - left - right) * (Math.log10(value) - xs[0]) / (xs[1] - xs[0] || 1);
  const y = (value: number) => height - bottom - (height - bottom - top) * (Math.log10(value) - ys[0]) / (ys[1] - ys[0] || 1);
  const every = ([low, high]: number[]) => Array.from({ length: high - low + 1 }, (_, at) => 10 ** (low + at));
  const unit = getDisplayProcessor({ field: { type: FieldType.number, config: { unit: panel.fieldConfig.defaults.unit } } as any, theme });
  const text = { fill: theme.colors.text.secondary, fontSize: 11, fontFamily: theme.typography.fontFamily };
  const named: number[][] = []; // where names stand, so that no two do at one place
  const free = (px: number, py: number) => {
    while (named.some(([ox, oy]) => Math.abs(ox - px) < 110 && Math.abs(oy - py) < 12)) py += 12;
    named.push([px, py]);
    return py;
  };
  return <svg width={width} height={height}>
    {every(xs).map((value) => <g key={value}><line x1={x(value)} x2={x(value)} y1={top} y2={height - bottom} stroke={theme.colors.border.weak} />
      <text {...text} x={x(value)} y={height - bottom + 14} textAnchor="middle">{String(Number(value.toPrecision(1)))}</text></g>)}
    {every(ys).map((value) => <g key={value}><line x1={left} x2={width - right} y1={y(value)} y2={y(value)} stroke={theme.colors.border.weak} />
      <text {...text} x={left - 6} y={y(value) + 4} textAnchor="end">{unit(value).text}{unit(value).suffix}</text></g>)}
    {series.map((each) => each.points.map((point: any, at: number) => <circle key={each.name + at} cx={x(point.x)} cy={y(point.y)} r={each.size / 2}
      fill={each.colour === "text" ? theme.colors.text.primary : theme.visualization.getColorByName(each.colour)} fillOpacity={0.8} />))}
    {series.filter((each) => each.colour !== "text").map((each) => each.points.map((point: any, at: number) =>
      <text key={each.name + at} {...text} x={x(point.x) + 8} y={free(x(point.x) + 8, y(point.y) + 4)}>{point.name}</text>))}
    {series.map((each, at) => <text key={each.name} {...text} x={left + 90 * at} y={height - 4}
      fill={each.colour === "text" ? theme.colors.text.primary : theme.visualization.getColorByName(each.colour)}>{`● ${each.name}`}</text>)}
    <text {...text} x={width - right} y={height - 4} textAnchor="end">{series.length && panel.options.series[0].x}</text>
  </svg>;
}

const DRAW: any = { timeseries: lines, stat, bargauge: bars, table, heatmap, xychart: scatter };

function body(panel: any, width: number, height: number) {
  const answer = answers[panel.id];
  if (!answer) return <div style={{ color: theme.colors.text.secondary, textAlign: "center", paddingTop: height / 2 - 10 }}>
    {panel.fieldConfig.defaults.noValue}</div>;
  return DRAW[panel.type](panel, answer, width, height);
}

function Page() {
  const column = WIDTH / 24;
  return <ThemeContext.Provider value={theme}><GlobalStyles />
    <div style={{ position: "relative", width: WIDTH, height: "100vh", background: theme.colors.background.canvas,
      fontFamily: theme.typography.fontFamily, color: theme.colors.text.primary }}>
      {dashboard.panels.map((panel: any) => {
        const { x, y, w, h } = panel.gridPos, top = y * (CELL + GAP) + 8, wide = w * column - GAP, high = h * (CELL + GAP) - GAP;
        const at: any = { position: "absolute", left: x * column + 4, top, width: wide, height: high };
        if (panel.type === "row") return <div key={panel.id} style={{ ...at, fontSize: 16, fontWeight: 500, lineHeight: "30px" }}>{panel.title}</div>;
        return <div key={panel.id} style={at}><PanelChrome title={panel.title} description={panel.description} width={wide} height={high}>
          {(width: number, height: number) => body(panel, width, height)}</PanelChrome></div>;
      })}
    </div></ThemeContext.Provider>;
}

// A panel that cannot be drawn is seen in the picture, as text.
const failed = (error: any) => { document.body.append(String(error?.stack ?? error)); };
createRoot(document.getElementById("root")!, { onUncaughtError: failed }).render(<Page />);
