"""Tabs: the chats of all open browser tabs.

A tab is known by the random id that its page drew (Gradio's session hash), never by an address that two users may
share. Used by page.py."""

from __future__ import annotations

import threading

from client import ChatClient
from client.webui.tab import Tab, View


class Tabs:
    """Makes a tab's chat when it is first needed and ends it when the tab closes or starts anew."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client
        self._tabs: dict[str, Tab] = {}
        self._lock = threading.Lock()

    def tab(self, tab_id: str) -> Tab:
        with self._lock:
            if tab_id not in self._tabs:
                self._tabs[tab_id] = Tab(self._client)
            return self._tabs[tab_id]

    def view(self, tab_id: str) -> View:
        """What a tab shows now; an empty chat where it has not begun one."""
        tab = self._tabs.get(tab_id)
        return tab.view if tab is not None else View()

    def close(self, tab_id: str) -> None:
        """Ends a tab's chat and its session on the server; an unknown tab is left alone."""
        with self._lock:
            tab = self._tabs.pop(tab_id, None)
        if tab is not None:
            tab.close()
