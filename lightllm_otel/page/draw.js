// The one entry: draw(element, data) replaces what is there.

function draw(main, data) {
  main.replaceChildren();
  const drawings = { report: drawReport, compare: drawCompare };
  drawings[data.kind](main, data);
  main.append(element("footer", {}, "lightllm-otel · hover for figures · the data of this page is in it, as JSON"));
}
