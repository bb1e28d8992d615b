"""Makes docs/webui.png: a short chat in the web UI, in Debian's Chromium, with whatever model it talks to.

    python -m backend.serve ./workspace &  python -m client.webui 127.0.0.1:33337 internlm2 &
    python docs/webui_picture.py http://127.0.0.1:6006"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PROMPTS = ("My name is Ada. Please remember it.", "Tell me a story about a fox and a rabbit.", "What is my name?")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main(link: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(link)
        page.wait_for_selector("#server .up")
        for prompt in PROMPTS:
            page.fill("#prompt textarea", prompt)
            page.press("#prompt textarea", "Enter")
            page.wait_for_selector("#cancel")
            page.wait_for_selector("#send")
        page.mouse.move(1100, 700)  # away from the messages, whose buttons show under the pointer
        page.wait_for_timeout(500)  # the chat scrolls to its end
        page.screenshot(path=Path(__file__).with_name("webui.png"))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
