"""A headless Chromium, driven over a pipe: no driver, no library, no port. What it logs and asks for is kept."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), None)
# It would look for its makers' hosts otherwise.
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--disable-extensions",
         "--hide-scrollbars", "--remote-debugging-pipe")  # fmt: skip
SECONDS = 30.0
READ, WRITE = 3, 4  # the descriptors on which Chromium expects its orders and puts its answers


class Browser:
    """One page. ``problems``: what its console, its network or its policy had to complain; ``requested``: every address."""

    def __init__(self, folder: Path, language: str = "en-US") -> None:
        self.problems: list[str] = []
        self.requested: list[str] = []
        self._numbers = itertools.count(1)
        self._start(folder, language)
        try:
            found = self.order("Target.getTargets")
        except (BrokenPipeError, AssertionError):  # on a busy machine it sometimes ends as soon as it has begun
            self.close()
            self._start(folder, language)
            found = self.order("Target.getTargets")
        (target,) = [each for each in found["targetInfos"] if each["type"] == "page"][:1]
        attached = self.order("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.order(f"{domain}.enable")

    def _start(self, folder: Path, language: str) -> None:
        self._pending = b""
        theirs, self._orders = os.pipe()
        self._answers, other = os.pipe()

        def place() -> None:
            # Twice, so that neither lies where the other is going to.
            one, two = os.dup(theirs), os.dup(other)
            high = os.dup(two), os.dup(one)
            os.dup2(high[1], READ)
            os.dup2(high[0], WRITE)

        self._process = subprocess.Popen(
            [str(EXECUTABLE), *QUIET, f"--accept-lang={language}", f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=place,  # noqa: PLW1509 - the descriptors need these very numbers, and no thread is about
            pass_fds=(READ, WRITE, theirs, other), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(other)

    _session = None

    def order(self, method: str, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._orders, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            answer = self._read(until)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self, until: float):
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], max(until - time.monotonic(), 0))
            assert ready, "Chromium does not answer"
            got = os.read(self._answers, 1 << 20)
            assert got, "Chromium has ended"
            self._pending += got
        whole, _, self._pending = self._pending.partition(b"\0")
        message = json.loads(whole)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, event) -> None:
        if method == "Network.requestWillBeSent":
            self.requested.append(event["request"]["url"])
        elif method == "Network.loadingFailed" and not event.get("canceled"):
            self.problems.append(f"{event['type']}: {event['errorText']}")
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.problems.append(str([each.get("value") for each in event["args"]]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.problems.append(event["entry"]["text"])

    def look(
        self, width: int = 1140, height: int = 900, scheme: str = "light", phone: bool = False, media: str = ""
    ) -> None:
        """What the reader has: a window, a liking for dark, a phone, paper (``media="print"``)."""
        self.order("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
                   mobile=phone)  # fmt: skip
        self.order(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def go(self, address: str) -> None:
        self.order("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(address)}")

    def evaluate(self, script: str):
        """The value of an expression in the page, awaited if it is a promise."""
        found = self.order("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 15.0) -> None:
        """Until an expression in the page is true."""
        until = time.monotonic() + seconds
        while not self.evaluate(f"!!({script})"):
            assert time.monotonic() < until, f"in vain: {script}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def press(self, key: str, code: int) -> None:
        """A key of the keyboard, down and up."""
        text = {"Enter": "\r", " ": " "}.get(key)
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.order("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def picture(self, path: Path, whole: bool = False) -> None:
        taken = self.order("Page.captureScreenshot", format="png", captureBeyondViewport=whole,
                           **({"clip": self._whole()} if whole else {}))  # fmt: skip
        path.write_bytes(base64.b64decode(taken["data"]))

    def printed(self) -> bytes:
        """The page as a PDF."""
        return base64.b64decode(self.order("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])

    def _whole(self):
        size = self.order("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def close(self) -> None:
        os.close(self._orders)  # it ends when nobody is there to give orders
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
