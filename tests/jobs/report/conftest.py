"""One browser for all tests of the report."""

from collections.abc import Iterator
from functools import partial

import pytest
from playwright.sync_api import Browser

import tests.browser
from tests.browser import CHROMIUM, OpenPage


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with tests.browser.start_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> OpenPage:
    return partial(tests.browser.open_page, browser)
