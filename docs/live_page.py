"""Take the pictures of the live page, docs/pictures/live-*.png: ``python docs/live_page.py ADDRESS``.

ADDRESS: of a ``lightllm-otel demo`` that has been running for a while, so that its hour has something to show. Needs Chromium,
and a font with Chinese (on Debian: fonts-wqy-microhei).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1140, 1394
SHOTS = {"live-light": ("en-US", "light"), "live-dark": ("en-US", "dark"), "live-zh": ("zh-CN", "light")}


def take(address: str) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, (language, scheme) in SHOTS.items():
            browser = Browser(Path(folder) / name, language)
            browser.look(WIDTH, HEIGHT, scheme)
            browser.go(address)
            browser.wait("document.querySelectorAll('section').length === 5")
            browser.picture(PICTURES / f"{name}.png")
            browser.close()


if __name__ == "__main__":
    take(sys.argv[1].rstrip("/") + "/")
