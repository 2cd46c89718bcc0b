"""Opening a page in headless Chromium and keeping a record of what it asked for and complained of."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 800}
READY_MS = 60_000


NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed: there is no `chromium` on the PATH"),
]


def in_the_slow_run(*names: str) -> list[Any]:
    """Cases of a parameter that need a page of their own each, and seldom fail where the others pass."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@dataclass
class Visit:
    """An open report and everything that it did on the way."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def outside(self) -> list[str]:
        own = self.page.url.split("#")[0]
        return [url for url in self.requests if url != own and not url.startswith(("data:", "blob:"))]


def visited(context: BrowserContext, path: Path) -> Visit:
    """Return a visit to the page in a file, after all of its charts are drawn."""
    seen = Visit(context.new_page())
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.goto(path.as_uri())
    seen.page.wait_for_selector("html[data-ready=true]", state="attached", timeout=READY_MS)
    return seen
