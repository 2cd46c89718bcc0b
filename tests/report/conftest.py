"""A browser for the tests that look at a report as a reader does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from visits import ARGUMENTS, CHROMIUM, DESK, Visit, visited


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def open_html(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens a file at a width, in a theme, and as a phone or not."""
    opened = []

    def open_file(path: Path, *, viewport: dict[str, int] = DESK, scheme: str = "light", touch: bool = False) -> Visit:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=touch, is_mobile=touch)
        opened.append(context)
        return visited(context, path)

    yield open_file
    for context in opened:
        context.close()
