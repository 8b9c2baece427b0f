"""What draws reports travels with the package."""

import zipfile

from lightllm_otel.page import FOLDER


def test_the_wheel_has_the_page_and_its_parts(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    parts = [path.name for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js")]
    assert len(parts) > 4
    assert {f"lightllm_otel/page/{name}" for name in parts} <= inside
