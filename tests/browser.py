"""A real browser for tests: headless Chromium that may not leave the machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine: apt-get install chromium")

_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_page(path: Path | str, **context: Any) -> Iterator[Page]:  # noqa: ANN401 - as playwright has it
    """Open a file in a new browser and hand over its page; fail if it logged an error or asked for an address.

    `context` are playwright's options of a browser context, as `viewport` and `color_scheme`.
    """
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        page = browser.new_context(**context).new_page()
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        address = Path(path).resolve().as_uri()
        page.on("request", lambda request: complaints.append(request.url) if _leaves(request.url, address) else None)
        page.goto(address)
        yield page
        browser.close()
    assert not complaints, complaints


def _leaves(url: str, address: str) -> bool:
    return url.split("#", maxsplit=1)[0] != address and not url.startswith("data:")
