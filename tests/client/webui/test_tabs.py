"""Tabs: one session per browser tab, ended with it."""

from __future__ import annotations

from client.webui.tab import Settings, View
from client.webui.tabs import Tabs
from tests.client.webui.fake_client import FakeClient


def test_each_tab_has_a_session_of_its_own():
    client = FakeClient()
    tabs = Tabs(client)
    for tab_id in ("one", "two", "one"):
        list(tabs.tab(tab_id).ask(f"from {tab_id}", Settings()))
    assert [[prompt for prompt, _ in session.turns] for session in client.sessions] == [
        ["from one", "from one"], ["from two"]]


def test_closed_tab_ends_its_session_and_begins_anew():
    client = FakeClient()
    tabs = Tabs(client)
    first = tabs.tab("one")
    list(first.ask("Hello", Settings()))
    assert tabs.view("one") is first.view
    tabs.close("one")
    assert client.sessions[0].is_ended and tabs.view("one") == View() and tabs.tab("one") is not first


def test_closing_a_tab_while_the_server_is_away_is_no_error():
    client = FakeClient()
    tabs = Tabs(client)
    tabs.tab("one")
    client.is_away = True
    tabs.close("one")
    tabs.close("never opened")
