"""Pages in headless Chromium, which must not load anything else."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
"""Path of the browser, "" if none is installed."""

OpenPage = Callable[..., AbstractContextManager[Page]]
"""`open_page` without its first argument: the fixture `open_page` of the report's tests."""

_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def start_browser() -> Iterator[Browser]:
    """Start Chromium, and close it on exit. Until then this thread cannot run an asyncio loop of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, path: Path | str, **context: Any) -> Iterator[Page]:  # noqa: ANN401
    """Open a file in a new context (no cookies, no cache), and close it on exit.

    Args:
        browser: The browser to open it in.
        path: The file.
        context: Options of playwright's `Browser.new_context`, such as `viewport` and `color_scheme`.

    Raises:
        AssertionError: On exit, if the page logged a warning or an error, or requested any other address.
    """
    complaints: list[str] = []
    address = Path(path).resolve().as_uri()
    with browser.new_context(**context) as opened:
        page = opened.new_page()
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if _leaves(request.url, address) else None)
        page.goto(address)
        yield page
    assert not complaints, complaints


def _leaves(url: str, address: str) -> bool:
    return url.split("#", maxsplit=1)[0] != address and not url.startswith("data:")
