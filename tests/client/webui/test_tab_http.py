"""Tab: turns of one browser tab over HTTP, at a small server of OpenAI's API."""

from __future__ import annotations

import threading

import pytest

from client import ChatClient
from client.webui.tab import Settings, Tab
from tests.client.fake_openai import SESSION_LEN
from tests.client.webui.test_tab import answers, last


@pytest.fixture
def tab(fake_openai):
    with ChatClient(fake_openai.url) as client:
        yield Tab(client)


def test_turns_follow_one_another_and_can_be_taken_back(tab, fake_openai):
    assert answers(last(tab.ask("one", Settings(system="Be brief.", max_new_tokens=7)))) == ["I heard 1: one "]
    view = last(tab.ask("two", Settings()))
    assert answers(view) == ["I heard 1: one ", "I heard 2: two "]
    assert (view.usage.session_len, view.usage.finish_reason) == (SESSION_LEN, "stop")
    assert view.usage.num_session_tokens == 3 + 2 + 1 + 4 + 1 + 4  # template, system, turns
    assert answers(last(tab.retry(Settings()))) == answers(view)
    assert fake_openai.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert fake_openai.requests[0]["max_completion_tokens"] == 7


def test_cancel_ends_the_answer_and_the_next_turn_goes_on(tab):
    for view in tab.ask("forever", Settings()):
        if answers(view) != [""]:
            threading.Thread(target=tab.cancel).start()
    assert view.usage.finish_reason == "abort" and answers(view)[0].startswith("on ")
    assert answers(last(tab.ask("again", Settings())))[1] == "I heard 2: again "


def test_a_refusal_is_shown_and_forgotten_with_the_next_turn(tab):
    last(tab.ask("one", Settings()))
    assert last(tab.ask("busy", Settings())).problem.endswith("(the queue is full); wait, and ask again")
    assert answers(last(tab.ask("two", Settings()))) == ["I heard 1: one ", "I heard 2: two "]
