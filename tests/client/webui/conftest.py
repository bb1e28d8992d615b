"""A page of the web UI over a fake client, and Debian's Chromium to look at it with."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.client.webui.fake_client import FakeClient

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
# Without the last four Chromium calls its maker's hosts by itself.
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
WINDOW = {"width": 1280, "height": 800}
TIMEOUT_MS = 10_000


@dataclass
class Site:
    """The page as it is served. `hosts`: whom this process looked up or called since the page was built."""

    client: FakeClient
    link: str
    hosts: set[str] = field(default_factory=set)


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    pytest.importorskip("gradio", reason="the web UI's tests need gradio: pip install -e '.[webui]'")
    hosts: set[str] = set()

    def note_calls(event: str, args: tuple) -> None:  # An audit hook stays for the life of the process.
        if event == "socket.connect" and isinstance(args[1], tuple):
            hosts.add(args[1][0])
        elif event == "socket.getaddrinfo":
            hosts.add(args[0])

    sys.addaudithook(note_calls)
    from client.webui.page import build_ui, launch

    client = FakeClient(word_every_s=0.02)
    ui = build_ui(client, "internlm2-demo")
    yield Site(client, launch(ui, "127.0.0.1", free_port()), hosts)
    ui.close(verbose=False)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; on Debian: apt-get install chromium")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A tab with the page open, the server there; everything it requests is in `page.requested`."""
    page = open_page(browser, site)
    yield page
    site.client.is_away = False
    page.close()


def open_page(browser: Browser, site: Site) -> Page:
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(TIMEOUT_MS)
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(site.link)
    page.wait_for_selector("#server .up")
    return page


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
