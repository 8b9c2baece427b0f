// Entry point: draw(main, data) updates the page, and changes only the nodes that differ.

const DRAWINGS = { report: drawReport, compare: drawCompare, live: drawLive };

function draw(main, data) {
  const fresh = document.createElement("main");
  DRAWINGS[data.kind](fresh, data);
  become(main, fresh);
}

// Turns one tree into another node by node, so that focus, scroll positions and opened details stay.
function become(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name === "style") old.style.cssText = fresh.style.cssText;
    else if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((node, index) => {
    const there = before[index];
    if (there === undefined) old.append(node);
    else if (there.nodeName !== node.nodeName) there.replaceWith(node);
    else if (node.nodeType === Node.ELEMENT_NODE) become(there, node);
    else if (there.data !== node.data) there.data = node.data;
  });
  for (const node of before.slice(after.length)) node.remove();
}

// Stream of new data and its state. It is closed while the page is hidden.
class DataStream {
  constructor(url, show) {
    Object.assign(this, { url, show, source: null, data: null, received: 0, opened: 0, failed: false, paused: false, ended: false, retry: 0 });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : this.open()));
  }
  open() {
    if (this.paused || this.source || document.hidden) return;
    clearTimeout(this.retry);
    this.opened = performance.now();
    this.failed = false;
    this.source = new EventSource(this.url);
    this.source.onmessage = (event) => {
      this.data = JSON.parse(event.data);
      this.received = performance.now();
      this.ended = this.failed = false;
      this.show();
    };
    this.source.addEventListener("ended", () => { this.ended = true; this.show(); });
    // A refusal (too many open pages) closes an EventSource permanently; after a lost connection, it reconnects by itself.
    this.source.onerror = () => {
      this.failed = true;
      if (this.source && this.source.readyState === EventSource.CLOSED) {
        this.close();
        this.retry = setTimeout(() => this.open(), 5000);
      }
      this.show();
    };
  }
  close() {
    clearTimeout(this.retry);
    if (this.source) this.source.close();
    this.source = null;
  }
  pause() {
    this.paused = !this.paused;
    if (this.paused) this.close(); else this.open();
    this.show();
  }
  get age() {
    return this.data ? (performance.now() - this.received) / 1000 : null;
  }
  get state() {
    if (this.paused) return "paused";
    if (this.ended) return "ended";
    const open = this.source && this.source.readyState === EventSource.OPEN;
    if (!open && (this.failed || performance.now() - this.opened > 5000)) return "lost";
    if (!open || !this.data) return "connecting";
    return this.age > 5 ? "stale" : "live";
  }
}

const STATES = {
  live: "Live", paused: "Paused", connecting: "Connecting", stale: "Stale: the exporter sends no new data",
  lost: "Connection lost, reconnecting", ended: "The server has stopped",
};

function start() {
  const [header, main, footer] = ["header", "main", "footer"].map((name) => document.querySelector(name));
  const embedded = JSON.parse(document.getElementById("data").textContent);
  const watch = embedded.events ? new DataStream(embedded.events, show) : null;
  const state = element("span", { id: "state", role: "status" }), age = element("span", { id: "age" });
  const pause = element("button", { type: "button", id: "pause" }), language = element("button", { type: "button", id: "language" });
  pause.onclick = () => watch.pause();
  language.onclick = () => { speak(LANGUAGE === "zh" ? "en" : "zh"); drawn = null; show(); };
  header.append(element("p", {}, element("b", {}, "lightllm-otel"), state, age), element("div", { class: "tools" }, watch ? pause : null, language));
  let drawn = null, width = 0;

  function set(node, text) { if (node.textContent !== text) node.textContent = text; }

  function show() {
    const data = (watch && watch.data) || embedded;
    document.documentElement.lang = LANGUAGE === "zh" ? "zh-CN" : "en";
    set(language, LANGUAGE === "zh" ? "English" : "中文");
    language.lang = LANGUAGE === "zh" ? "en" : "zh-CN";
    if (watch) {
      document.body.dataset.state = watch.state;
      set(state, t(STATES[watch.state]));
      set(age, watch.age === null ? "" : t("data {age} old", { age: seconds(Math.round(watch.age * 10) / 10 || 0.1) }));
      set(pause, t(watch.paused ? "Resume" : "Pause"));
    } else if (data.at) set(state, t("Snapshot of {when}", { when: when(data.at) }));
    if (data !== drawn || width !== main.clientWidth) {
      [drawn, width] = [data, main.clientWidth];
      draw(main, data);
      const links = watch ? ["/metrics", "/live.json", "/frozen.html"] : [];
      become(footer, element("footer", {}, element("p", {}, t(watch ? "The same data for other programs, and a page to save:" : "Hover to see values · this page contains its data as JSON"), " ",
        links.map((each) => [element("a", { href: each }, each), " "]).flat())));
    }
  }
  addEventListener("resize", () => requestAnimationFrame(show));
  if (watch) {
    watch.open();
    setInterval(show, 500);
  }
  show();
}
start();
