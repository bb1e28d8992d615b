"""Chat: talk to a model in the terminal, no server. `python -m backend.chat MODEL_NAME MODEL_PATH`.

The conversation is a session of the engine in this process: each turn computes only what is new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from backend.command_line import (
    CONTEXT_SETTINGS,
    engine_options,
    engine_overrides,
    log_option,
    model_format_option,
    run,
    sampling_options,
    sampling_params,
)
from backend.errors import RequestError, TemplateError
from backend.requests import FinishReason, SamplingParams
from terminal.interrupt import Interrupt

if TYPE_CHECKING:
    from backend.engine.llm import LLM
    from backend.text.front_end import TextOutput

SESSION_ID = 1

EPILOG = """\b
Examples:
  python -m backend.chat internlm2 ./workspace
  python -m backend.chat internlm2 ./workspace --prompt "Tell me a story about a fox."
  python -m backend.chat llama2 /path/to/llama-2-7b-chat --max_new_tokens 64 --temperature 0.8 --seed 0
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EPILOG)
@click.argument("model_name")
@click.argument("model_path")
@click.option("--prompt", help="Answer this one message and leave.")
@click.option("--system", help="A system message that begins the conversation.")
@model_format_option
@sampling_options
@engine_options
@log_option
def main(model_name: str, model_path: str, prompt: str | None, system: str | None, model_format: str | None,
         **options: Any) -> None:
    """Talk to the model in MODEL_PATH, a workspace or a Hugging Face folder.

    MODEL_NAME chooses the built-in chat template where the model brings none. An empty line sends your message;
    `end` forgets the conversation, `exit` leaves, Ctrl-C stops an answer."""
    from backend.engine.llm import LLM  # takes seconds, in which Ctrl-C should be understood

    sampling = sampling_params(options)
    if prompt is not None and not prompt.strip():
        raise RequestError("--prompt is empty; give a message, or leave it out to type one")
    overrides = engine_overrides(options)
    overrides["max_batch_size"] = overrides["max_batch_size"] or 1  # there is one user, who needs little KV cache
    with LLM(model_path, model_name, model_format=model_format, **overrides) as llm:
        conversation = Conversation(llm, sampling, system)
        if prompt is not None:
            conversation.answer(prompt)
            return
        try:
            _talk(conversation)
        except UnicodeDecodeError as error:
            raise RequestError(f"the input is not UTF-8 text ({error}); convert it, for example with iconv") from None


def _talk(conversation: Conversation) -> None:
    from terminal.messages import messages

    for message in messages():
        if message == "exit":
            return
        if message == "end":
            conversation.forget()
            click.echo("(the conversation is forgotten)")
        elif message:
            try:
                conversation.answer(message)
            except RequestError as error:
                click.echo(f"error: {error}; type end to begin a new conversation", err=True)


class Conversation:
    """The turns of one chat: a session in the engine or, where the template rewrites earlier turns, all messages."""

    def __init__(self, llm: LLM, sampling: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._sampling = sampling
        self._beginning = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = []
        self._in_session = True

    def answer(self, text: str) -> None:
        """Streams the answer to the terminal; Ctrl-C ends it, and the conversation goes on from there."""
        question = {"role": "user", "content": text}
        with Interrupt() as interrupt:
            stream = self._stream(question)
            answer = ""
            for output in stream:
                click.echo(output.text, nl=False)
                answer += output.text
                if interrupt.is_set and output.finish_reason is None:
                    stream.close()
                    click.echo(" (stopped)", nl=False, err=True)
                    break
                if output.finish_reason is FinishReason.LENGTH:
                    click.echo(f" (cut: {self._limit()})", nl=False, err=True)
        click.echo()
        self._messages += [question, {"role": "assistant", "content": answer}]

    def forget(self) -> None:
        """Begins a new conversation."""
        if self._in_session and self._messages:
            self._llm.end_session(SESSION_ID)
        self._messages, self._in_session = [], True

    def _limit(self) -> str:
        if self._sampling.max_new_tokens is not None:
            return "max_new_tokens is reached"
        return "session_len is reached; type end to begin a new conversation"

    def _stream(self, question: dict[str, str]) -> Iterator[TextOutput]:
        if self._in_session and self._messages:
            try:
                return self._llm.stream([question], self._sampling, session_id=SESSION_ID)
            except TemplateError:
                self._llm.end_session(SESSION_ID)
                self._in_session = False
        session_id = SESSION_ID if self._in_session else None
        return self._llm.stream([*self._beginning, *self._messages, question], self._sampling, session_id=session_id)


if __name__ == "__main__":
    run(main)
