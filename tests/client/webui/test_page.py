"""The page as a person uses it: a real Chromium, the fake client behind it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.client.webui.conftest import Site, open_page
from tests.client.webui.fake_client import AWAY, FakeSession

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def say(page: Page, text: str) -> None:
    page.fill("#prompt textarea", text)
    page.press("#prompt textarea", "Enter")


def answers(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#messages [data-testid=bot]").all_inner_texts()]


def wait_for_answers(page: Page, *expected: str) -> None:
    wait_until(lambda: answers(page) == list(expected))
    page.wait_for_selector("#send")


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def session_that_heard(site: Site, prompt: str) -> FakeSession:
    [session] = [session for session in site.client.sessions if any(turn[0] == prompt for turn in session.turns)]
    return session


def test_answer_is_shown_while_it_grows(page: Page):
    say(page, "a long growing one")
    page.wait_for_selector("#messages >> text=word5")
    early = answers(page)[0]
    page.wait_for_selector("#messages >> text=word40")
    assert answers(page)[0].startswith(early) and page.is_visible("#cancel") and page.is_hidden("#send")


def test_answer_is_markdown_with_its_figures_below(page: Page, site: Site):
    site.client.num_answers = 0
    say(page, "Hello")
    wait_for_answers(page, "Answer 1 to Hello in turn 1")
    assert page.inner_text("#messages [data-testid=bot] strong") == "Hello"
    status = page.inner_text("#status")
    assert re.fullmatch(r"\d+ tokens/s · 7 tokens in this answer · 8 of 2,048 of the session used · 0 cached", status)
    assert page.input_value("#prompt textarea") == ""


def test_cancel_keeps_what_came_and_the_next_turn_goes_on(page: Page, site: Site):
    say(page, "a long cancelled one")
    page.wait_for_selector("#messages >> text=word5")
    page.click("#cancel")
    page.wait_for_selector("#status >> text=cancelled")
    page.wait_for_selector("#send")
    partial = answers(page)[0]
    assert partial.startswith("word1 word2")
    say(page, "Next")
    page.wait_for_selector("#messages >> text=/in turn 2$/")
    assert answers(page)[0] == partial
    assert session_that_heard(site, "a long cancelled one").turns[0][1].strip() == partial


def test_message_sent_while_an_answer_runs_waits_in_the_box(page: Page):
    say(page, "a long busy one")
    page.wait_for_selector("#messages >> text=word2")
    say(page, "too early")
    page.wait_for_selector("#messages >> text=word15")
    assert page.input_value("#prompt textarea") == "too early"
    page.click("#cancel")
    page.wait_for_selector("#send")
    assert len(answers(page)) == 1


def test_reset_stops_the_answer_empties_the_page_and_ends_the_session(page: Page, site: Site):
    say(page, "Before reset")
    page.wait_for_selector("#messages >> text=/in turn 1$/")
    session = session_that_heard(site, "Before reset")
    say(page, "a long one before reset")
    page.wait_for_selector("#messages >> text=word5")
    page.click("#reset")
    page.wait_for_selector("#messages .placeholder")
    wait_until(lambda: session.is_ended)
    say(page, "After reset")
    page.wait_for_selector("#messages >> text=/in turn 1$/")
    assert len(answers(page)) == 1 and session_that_heard(site, "After reset") is not session


def test_retry_gives_another_answer_in_place_of_the_last(page: Page, site: Site):
    site.client.num_answers = 0
    assert page.is_disabled("#retry")
    say(page, "Again please")
    wait_for_answers(page, "Answer 1 to Again please in turn 1")
    page.click("#retry")
    wait_for_answers(page, "Answer 2 to Again please in turn 1")
    assert len(session_that_heard(site, "Again please").turns) == 1


def test_two_tabs_have_two_sessions_and_closing_one_ends_its_own(page: Page, browser: Browser, site: Site):
    other = open_page(browser, site)
    for tab, text in ((page, "from the first"), (other, "from the second")):
        say(tab, text)
        tab.wait_for_selector("#messages >> text=/in turn 1$/")
    first, second = (session_that_heard(site, text) for text in ("from the first", "from the second"))
    assert first is not second
    other.close()
    wait_until(lambda: second.is_ended)
    assert not first.is_ended


def test_settings_reach_the_server(page: Page, site: Site):
    page.fill("#system textarea", "Be brief.")
    page.fill("#max_new_tokens input[type=number]", "64")
    page.press("#max_new_tokens input[type=number]", "Tab")
    say(page, "With settings")
    page.wait_for_selector("#messages >> text=/in turn 1$/")
    [options] = session_that_heard(site, "With settings").options
    assert options == {"system": "Be brief.", "temperature": 0.8, "top_p": 0.8, "top_k": 0, "max_new_tokens": 64,
                       "repetition_penalty": 1}


def test_page_says_that_the_server_is_away_and_goes_on_when_it_is_back(page: Page, site: Site):
    site.client.num_answers = 0
    site.client.is_away = True
    say(page, "Anybody there?")
    page.wait_for_selector(f"#status >> text={AWAY}")
    page.wait_for_selector("#server .away")
    site.client.is_away = False
    page.wait_for_selector("#server .up")
    page.click("#retry")
    wait_for_answers(page, "Answer 1 to Anybody there? in turn 1")


def test_nothing_leaves_this_machine(page: Page, site: Site):
    page.evaluate("""() => { window.refused = [];
        document.addEventListener('securitypolicyviolation', event => window.refused.push(event.blockedURI)) }""")
    say(page, "![picture](http://example.invalid/picture.png)")
    page.wait_for_selector("#messages >> text=/in turn 1$/")
    # The answer's picture is refused by the page's own policy, before any name is looked up.
    wait_until(lambda: "http://example.invalid/picture.png" in page.evaluate("window.refused"))
    other = {url for url in page.requested if urlsplit(url).scheme in ("http", "https", "ws", "wss")
             and urlsplit(url).hostname != "127.0.0.1"}
    assert other <= set(page.evaluate("window.refused"))
    assert page.evaluate("[...document.fonts].some(font => font.status == 'loaded')")
    assert site.hosts == {"127.0.0.1"}


@pytest.mark.parametrize("width", [420, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, site: Site, width: int):
    page = open_page(browser, site)
    page.set_viewport_size({"width": width, "height": 800})
    page.reload()
    page.wait_for_selector("#server .up")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#send")
    page.close()
