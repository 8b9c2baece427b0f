import * as ui from '@grafana/ui';
console.log(Object.keys(ui).filter(k => /TimeSeries|BigValue|BarGauge|Table|PanelChrome|GlobalStyles|ThemeContext|GraphNG|Legend|UPlot|ThemeProvider|PanelContext/.test(k)).join(' '));
