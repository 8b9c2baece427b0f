"""Tests of the live page in a headless Chromium, while the demo replays a recording."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import browser
import numpy as np
import pytest
import records
from prometheus_client import CollectorRegistry

from lightllm_otel.exporter.event_stream import EventStream
from lightllm_otel.exporter.http_server import MetricsServer
from lightllm_otel.exporter.live import Live
from lightllm_otel.records import layout
from lightllm_otel.records.vocabulary import Mode, Phase
from lightllm_otel.reduce.group import Group
from lightllm_otel.tools.cli import main as command

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / ".cache" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
PANELS = ["load", "decode", "ranks", "slow", "health"]
DRAWN = f"document.querySelectorAll('section').length === {len(PANELS)}"
AGREED = {"moderate", "minor"}
pytestmark = pytest.mark.skipif(browser.EXECUTABLE is None, reason="no Chromium here")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def replay(*words):
    """Start ``lightllm-otel demo``, and return its address and process."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "lightllm_otel", "demo", "--port", str(port), *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith("Live page: "):
                yield line.split()[-1], process
                break
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def two_ranks():
    with replay("h200-llama-tp2", "--speed", "3") as (address, _):
        yield address


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    started = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def page(chromium):
    """Reset the shared browser: light, wide, English, and no problems so far."""
    chromium.go("about:blank")
    chromium.look()
    chromium.problems.clear()
    chromium.requested.clear()
    return chromium


def complaints(page):
    """Return the violations that axe-core finds, as (rule, impact, where)."""
    if not AXE.exists():
        pytest.skip("no axe-core: make axe")
    page.evaluate(AXE.read_text() + ";0")
    found = page.evaluate("axe.run().then((found) => found.violations.map((each) => "
                          "[each.id, each.impact, each.nodes.map((node) => node.target.join(' ')).join(', ')]))")  # fmt: skip
    return [tuple(each) for each in found if each[1] not in AGREED]


def test_every_panel_has_data_and_nothing_leaves_the_host(page, two_ranks):
    page.go(two_ranks)
    page.wait(DRAWN)
    page.wait("document.querySelectorAll('#ranks ~ figure svg').length")
    for name in PANELS[:-1]:  # a replay that has just begun has no values yet
        page.wait(f"document.querySelectorAll('#{name} ~ * svg[role=img][aria-label]').length > 0")
    assert (
        page.evaluate("[...document.querySelectorAll('section')].map((each) => each.getAttribute('aria-labelledby'))")
        == PANELS
    )
    for name in PANELS:
        text = page.evaluate(f"document.getElementById('{name}').parentElement.innerText")
        assert re.search(r"\d (ms|µs|s|%|MB)\b|\d %", text), f"{name} has no figure with a unit:\n{text}"
        assert "NaN" not in text
        assert "undefined" not in text
        assert "object" not in text
    assert page.problems == []
    assert {each.split("?")[0] for each in page.requested} == {two_ranks, f"{two_ranks}events"}


def test_figures_come_anew_without_a_reload(page, two_ranks):
    page.go(two_ranks)
    page.wait(DRAWN)
    page.evaluate("window.kept = document.querySelector('#health ~ div dd'), window.text = kept.textContent")
    page.wait("kept.textContent !== text")
    assert page.evaluate("kept.isConnected")  # the same element as before, so focus and scroll position are kept


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1140, 390])
def test_axe_finds_nothing_serious(page, two_ranks, scheme, width):
    page.look(width, 844, scheme, phone=width < 500)
    page.go(two_ranks)
    page.wait(DRAWN)
    assert complaints(page) == []


def test_axe_finds_nothing_serious_in_a_report(page, tmp_path, capsys):
    """The report uses the same template, scripts and colours as the live page."""
    file = tmp_path / "report.html"
    assert command(["report", "h200-llama-tp2", "--html", str(file)]) == 0
    page.look(scheme="dark")
    page.go(file.as_uri())
    page.wait("document.querySelector('figure')")
    assert complaints(page) == []
    assert page.problems == []


def test_on_a_phone_nothing_is_cut_off_and_words_keep_their_size(page, two_ranks):
    page.look(390, 844, phone=True)
    page.go(two_ranks)
    page.wait(DRAWN)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map((each) => each.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_on_bars_can_be_read(page, two_ranks, scheme):
    """axe-core does not check text in SVG images."""
    page.look(scheme=scheme)
    page.go(two_ranks)
    page.wait(
        "document.querySelector('#ranks ~ figure svg text.on') && document.querySelector('#slow ~ * svg text.on')"
    )
    ratios = page.evaluate("""(() => {
      const linear = (each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
      const light = (colour) => {
        const [red, green, blue] = colour.match(/[0-9.]+/g).map((each) => linear(each / 255));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue; };
      return [...document.querySelectorAll("svg text.on")].map((text) => {
        const pair = [text, text.previousElementSibling].map((each) => light(getComputedStyle(each).fill)).sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05); });
    })()""")
    assert len(ratios) > 5
    assert min(ratios) >= 4.5


class TestEmptyStates:
    """Tests of the page without data, and with data that are incomplete."""

    @pytest.fixture
    def show(self, page):
        """Start a page, and yield a function that sets its data."""
        event_stream = EventStream()
        server = MetricsServer(CollectorRegistry(), "127.0.0.1", free_port(), event_stream)
        page.go(f"http://{server.address}/")
        assert "Waiting for the exporter" in page.evaluate("document.querySelector('main').innerText")
        page.wait("document.body.dataset.state === 'connecting'")

        def tell(*steps, header=None, **facts):
            group = Group()
            group.set_facts(0, {**records.FACTS, **facts})
            group.ranks[0].header = header
            live = Live(group)
            live.poll(0.0)
            if steps:
                group.add(0, records.batch(*steps))
            event_stream.publish(json.dumps(live.data(5.0)).encode())
            page.wait("document.body.dataset.state === 'live'")
            return page.evaluate("document.querySelector('main').innerText")

        yield tell
        assert page.problems == []
        server.close()

    def test_a_server_without_requests_yet(self, show):
        assert "No steps yet. Send a request to the server" in show()

    def test_graphs_without_instrumented_graphs_have_step_times_and_the_reason(self, show):
        said = show(records.step(mode=Mode.GRAPH), graphs={"state": "off", "reason": "outputs differed"})
        assert "no instrumented graphs (outputs differed)" in said
        assert "1 s\nper step, all steps" in said

    def test_two_ranks_of_which_no_step_was_compared(self, show):
        assert "No step has been compared across ranks yet" in show(records.step(), tp=2)

    def test_ranks_on_other_hosts(self, show):
        assert "The group spans several hosts" in show(records.step(), tp=2, nodes=2)

    def test_prefill_alone(self, show):
        assert "No decode step in the last hour" in show(records.step(phase=Phase.PREFILL))

    def test_a_rank_that_is_stuck_is_named_at_the_top(self, show):
        header = np.zeros(1, layout.HEADER)[0]
        header["in_flight"], header["in_flight_since"], header["in_flight_number"] = 1, time.time() - 42, 7
        assert "Rank 0 has been in step 7 for 42" in show(records.step(), header=header)
        assert "Rank 0 has been in step 7 for 42" in show(header=header)


def test_all_of_it_can_be_had_with_the_keyboard(page, two_ranks):
    page.go(two_ranks)
    page.wait(DRAWN)
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.id") == "pause"
    page.press("Enter", 13)
    page.wait("document.body.dataset.state === 'paused'")
    page.press("Enter", 13)
    page.wait("document.body.dataset.state === 'live'")
    page.press("Tab", 9)
    page.press("Enter", 13)
    page.wait("document.documentElement.lang === 'zh-CN'")
    page.press("Enter", 13)
    page.wait("document.documentElement.lang === 'en'")
    assert page.evaluate("document.activeElement.id") == "language"


def test_a_reader_of_chinese_gets_chinese_and_no_english_sentence(two_ranks, tmp_path):
    page = browser.Browser(tmp_path, "zh-CN")
    try:
        page.look()
        page.go(two_ranks)
        page.wait(DRAWN)
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        # Facts of a server, operator names and commands are not translated. Two English words in a row indicate a sentence.
        text = page.evaluate("document.querySelector('main').innerText").partition("\n\n")[2]
        assert re.findall(r"[a-z]{3,} [a-z]{3,}", re.sub(r"lightllm-otel .*", "", text)) == []
        assert page.problems == []
    finally:
        page.close()


def test_every_english_text_of_the_scripts_has_its_chinese():
    scripts = {
        name: (ROOT / "lightllm_otel" / "page" / name).read_text()
        for name in ("live.js", "draw.js", "report.js", "svg.js")
    }
    known = set(re.findall(r'"([^"]+)":', (ROOT / "lightllm_otel" / "page" / "words.js").read_text()))
    used = {text for script in scripts.values() for text in re.findall(r'\bt\("([^"]+)"', script)}
    assert len(used) > 60
    assert used - known == set()


def test_one_gpu_has_no_all_reduce_and_says_so(page):
    with replay() as (address, _):
        page.go(address)
        page.wait(DRAWN)
        assert "TP 1" in page.evaluate("document.getElementById('ranks').parentElement.innerText")
        assert page.problems == []


def test_an_exporter_that_hangs_is_stale_and_one_that_is_gone_is_lost(page):
    with replay() as (address, process):
        page.go(address)
        page.wait("document.body.dataset.state === 'live'")
        process.send_signal(signal.SIGSTOP)
        page.wait("document.body.dataset.state === 'stale'")
        assert "Stale" in page.evaluate("document.getElementById('state').textContent")
        process.send_signal(signal.SIGCONT)
        page.wait("document.body.dataset.state === 'live'")
        process.kill()
        page.wait("document.body.dataset.state === 'lost'")
        age = page.evaluate("document.getElementById('age').textContent")
        page.wait(f"document.getElementById('age').textContent !== {json.dumps(age)}")
        assert page.evaluate(DRAWN)  # the last data stay, with their age


def test_the_end_of_the_server_is_told(page):
    with replay("--seconds", "2") as (address, _):
        page.go(address)
        page.wait("document.body.dataset.state === 'ended'")


def test_the_frozen_page_shows_the_same_and_asks_for_nothing(page, two_ranks):
    page.go(f"{two_ranks}frozen.html")
    page.wait(DRAWN)
    assert "Snapshot of" in page.evaluate("document.getElementById('state').textContent")
    assert page.requested == [f"{two_ranks}frozen.html"]
    assert page.problems == []
