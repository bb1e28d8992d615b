"""Page: the components of the web UI, and which act of the user leads to which act of the tab.

Owns the layout and the wiring. What a turn is, tab.py knows; colours and fonts, look.py. Used by __main__.py."""

from __future__ import annotations

import html
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from client import ChatClient, ChatError
from client.webui.look import STYLE_SHEET, StayHere, theme
from client.webui.tab import Message, Settings, View
from client.webui.tabs import Tabs

CHECK_SERVER_EVERY_S = 3.0
MAX_THREADS = 256  # An answer holds a thread while it waits for its next part, so this bounds the answers at one time.
STARTERS = ("Tell me a story about a fox and a rabbit.", "My name is Ada. Please remember it.")
BLANK = "<span>&nbsp;</span>"  # keeps the line's height, which an empty one loses


def build_ui(client: ChatClient, model_name: str) -> gr.Blocks:
    """The page, ready for `launch`. Each browser tab gets a chat and a session of its own."""
    tabs = Tabs(client)
    with gr.Blocks(title=f"{model_name} · Millrace", analytics_enabled=False) as ui:
        with gr.Row(elem_id="header"):
            gr.HTML(f"<h1>Millrace</h1><span id='model'>{html.escape(model_name)}</span>", elem_id="title")
            server = gr.HTML(elem_id="server")
        messages = gr.Chatbot(
            elem_id="messages", show_label=False, layout="bubble", buttons=["copy"], height=None,
            feedback_options=None, placeholder="### What shall we talk about?",
            examples=[{"text": starter} for starter in STARTERS],
            latex_delimiters=[{"left": "$$", "right": "$$", "display": True},
                              {"left": "\\[", "right": "\\]", "display": True},
                              {"left": "\\(", "right": "\\)", "display": False}],
        )
        status = gr.HTML(BLANK, elem_id="status")
        with gr.Row(elem_id="ask"):
            prompt = gr.Textbox(elem_id="prompt", show_label=False, container=False, lines=1, max_lines=8, scale=1,
                                autofocus=True, placeholder="Write a message. Enter sends, Shift+Enter starts a line.")
            send = gr.Button("Send", elem_id="send", variant="primary", scale=0, min_width=96)
            cancel = gr.Button("Cancel", elem_id="cancel", variant="stop", scale=0, min_width=96, visible=False)
        with gr.Row(elem_id="turns"):
            retry = gr.Button("Retry", elem_id="retry", size="sm", scale=0, min_width=84, interactive=False)
            reset = gr.Button("Reset", elem_id="reset", size="sm", scale=0, min_width=84)
        with gr.Sidebar(position="right", width=320, elem_id="settings"):
            settings = _settings()

        shown = [messages, status, send, cancel, retry]
        # Without limits of its own each handler would serve one tab at a time, which is Gradio's default.
        event = partial(dict, concurrency_limit=None, show_progress="hidden", api_visibility="private")

        def views(request: gr.Request, answer: Iterator[View]) -> Iterator[View]:
            """An answer's views. Gradio shows the last one again when a handler ends, by which time the chat may have
            been reset: so the last one is what the tab shows then."""
            is_begun = False
            for view in answer:
                is_begun = True
                yield view
            if is_begun:
                yield tabs.view(request.session_hash)

        def on_send(request: gr.Request, text: str, *values: Any) -> Iterator[list[Any]]:
            emptied = ""
            for view in views(request, tabs.tab(request.session_hash).ask(text, Settings(*values))):
                yield [*_show(view), emptied]
                emptied = gr.skip()  # what is typed while the answer runs stays

        def on_starter(request: gr.Request, chosen: gr.SelectData, *values: Any) -> Iterator[list[Any]]:
            yield from on_send(request, chosen.value["text"], *values)

        def on_retry(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
            for view in views(request, tabs.tab(request.session_hash).retry(Settings(*values))):
                yield _show(view)

        def on_cancel(request: gr.Request) -> None:
            try:
                tabs.tab(request.session_hash).cancel()
            except ChatError as error:
                raise gr.Error(str(error), print_exception=False) from error

        def on_reset(request: gr.Request) -> list[Any]:
            tabs.close(request.session_hash)
            return _show(View())

        def on_close(request: gr.Request) -> None:
            tabs.close(request.session_hash)

        gr.on([prompt.submit, send.click], on_send, [prompt, *settings], [*shown, prompt], **event())
        messages.example_select(on_starter, settings, [*shown, prompt], **event())
        retry.click(on_retry, settings, shown, **event())
        cancel.click(on_cancel, None, None, queue=False, **event())
        reset.click(on_reset, None, shown, **event())
        timer = gr.Timer(CHECK_SERVER_EVERY_S)
        gr.on([ui.load, timer.tick], lambda: _server_state(client), None, server, trigger_mode="once", **event())
        ui.unload(on_close)
        ui.load(None, js="() => { if (innerWidth < 800) document.querySelector('#settings .toggle-button')?.click() }")
    return ui


def launch(ui: gr.Blocks, server_name: str, server_port: int, share: bool = False) -> str:
    """Serves the page from threads of this process and returns its address. A public link is made only with `share`.

    Raises OSError if the port is taken."""
    _, local_url, share_url = ui.queue(default_concurrency_limit=None).launch(
        server_name=server_name, server_port=server_port, share=share, prevent_thread_lock=True, quiet=True,
        footer_links=[], ssr_mode=False, pwa=False, enable_monitoring=False, max_threads=MAX_THREADS,
        theme=theme(), css_paths=STYLE_SHEET, app_kwargs={"middleware": [Middleware(StayHere)]},
    )
    return share_url or local_url


def _settings() -> list[gr.components.Component]:
    """The controls, in the order of Settings' fields."""
    default = Settings()
    gr.Markdown("### Settings")
    system = gr.Textbox(label="System prompt", elem_id="system", lines=3, max_lines=10, value=default.system,
                        placeholder="You are a helpful assistant.",
                        info="A chat keeps the one it began with; Reset begins another.")
    return [
        system,
        gr.Slider(0, 2, default.temperature, step=0.05, label="Temperature", info="0 takes the likeliest token."),
        gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top p"),
        gr.Slider(0, 200, default.top_k, step=1, label="Top k", info="0 keeps all."),
        gr.Slider(0, 4096, default.max_new_tokens, step=16, label="Max new tokens", elem_id="max_new_tokens",
                  info="0 sets no limit."),
        gr.Slider(1, 2, default.repetition_penalty, step=0.01, label="Repetition penalty"),
    ]


def _show(view: View) -> list[Any]:
    """Values of messages, status, send, cancel and retry."""
    return [
        [_bubble(message, view.is_answering) for message in view.messages],
        _status(view),
        gr.Button(visible=not view.is_answering),
        gr.Button(visible=view.is_answering),
        gr.Button(interactive=bool(view.messages) and not view.is_answering),
    ]


def _bubble(message: Message, is_answering: bool) -> dict[str, str]:
    return {"role": message.role, "content": message.text or ("…" if is_answering else "*(no answer)*")}


def _status(view: View) -> str:
    """The line under the messages: what went wrong, or speed and use of the session."""
    if view.problem:
        return f"<span class='problem'>{html.escape(view.problem)}</span>"
    if view.usage is None:
        return "<span>reading the prompt …</span>" if view.is_answering else BLANK
    usage = view.usage
    session = f"{usage.num_session_tokens:,}" + (f" of {usage.session_len:,}" if usage.session_len else "")
    facts = [
        {"abort": "cancelled", "length": "stopped at the length limit"}.get(usage.finish_reason),
        f"{usage.tokens_per_s:,.0f} tokens/s" if usage.tokens_per_s else "",
        f"{usage.num_completion_tokens:,} tokens in this answer",
    ]
    if usage.num_session_tokens:  # over HTTP known with the last part only
        facts += [f"{session} of the session used", f"{usage.num_cached_tokens:,} cached"]
    return " · ".join(f"<span>{fact}</span>" for fact in facts if fact)


def _server_state(client: ChatClient) -> str:
    """The mark in the header; checked every few seconds, so that a server that comes back is seen."""
    if client.is_ready():
        return "<span class='up'>connected</span>"
    return "<span class='away'>server away, waiting for it</span>"
