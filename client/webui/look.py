"""Look: colours, fonts and style sheet of the page, and the policy that keeps the browser on this server.

Fonts are files of the gradio package; nothing is fetched from anywhere else. Used by page.py."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STYLE_SHEET = Path(__file__).with_name("style.css")

# An answer is text from a model: an image or link preview in it must not make the browser call another host.
CONTENT_POLICY = ("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
                  "object-src 'none'; base-uri 'self'; form-action 'self'")


def theme() -> gr.themes.Base:
    """Warm greys, one green, and flat surfaces; light and dark follow the system."""
    return gr.themes.Base(
        primary_hue=colors.emerald,
        secondary_hue=colors.stone,
        neutral_hue=colors.stone,
        text_size=sizes.text_md,
        radius_size=sizes.radius_lg,
        # Regular and bold: the semibold files that gradio 6.31 ships hold only part of the alphabet.
        font=(fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=(fonts.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="500",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        border_color_accent_subdued="*neutral_200",
        border_color_accent_subdued_dark="*neutral_700",
        color_accent_soft="*neutral_100",
        color_accent_soft_dark="*neutral_800",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
    )


class StayHere:
    """ASGI middleware that sends CONTENT_POLICY with every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = ((b"content-security-policy", CONTENT_POLICY.encode()), (b"referrer-policy", b"no-referrer"))
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        await self._app(scope, receive, send_with_policy)
