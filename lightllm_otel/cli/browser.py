"""Pages as pictures, by a Chromium that is there already: ``report --svg``."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lightllm_otel.page import FOLDER

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# It would look for its makers' hosts otherwise.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
WIDTH = 1140
_SECONDS = 120.0
_SVG = re.compile(r'<svg (?P<rest>[^>]*aria-label="(?P<label>[^"]*)".*?</svg>)', re.DOTALL)


class NoBrowser(LookupError):
    """There is none, or it did not do it; the message says what to do."""


def svgs(page: str, folder: Path) -> list[Path]:
    """Every picture as a file of its own, in the page's style, light or dark as its viewer likes. Raises NoBrowser."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoBrowser(f"{folder} cannot be made ({error.strerror}); give another folder") from error
    drawn = _run(page, "--dump-dom", f"--window-size={WIDTH},1000")
    style = (FOLDER / "style.css").read_text()
    paths: list[Path] = []
    for number, found in enumerate(_SVG.finditer(drawn), 1):
        name = re.sub(r"[^a-z0-9]+", "-", found["label"].lower()).strip("-")
        path = folder / f"{number:02}-{name}.svg"
        # Parsed as HTML and written as such, the drawing lacks what XML wants to be told.
        rest = found["rest"].replace("&nbsp;", "\u00a0")
        head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" '
        start, middle, end = rest.partition(">")
        path.write_text(f"{head}{start}{middle}<style>{style}</style>{end}\n")
        paths.append(path)
    return paths


def _run(page: str, *words: str) -> str:
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        raise NoBrowser("pictures are drawn by Chromium, which is not on PATH; install it, or open the page of --html")
    folder = Path(tempfile.mkdtemp(prefix="lightllm-otel-page-"))
    try:
        (folder / "page.html").write_text(page)
        command = [browser, *QUIET, f"--user-data-dir={folder / 'profile'}", *words, (folder / "page.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        raise NoBrowser(
            f"{browser} did not draw the page ({type(error).__name__}); open that of --html yourself"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it may still be writing to its profile
