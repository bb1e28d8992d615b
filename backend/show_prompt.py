"""Show prompt: the exact text and token ids that a conversation becomes. `python -m backend.show_prompt`.

Reads only the tokenizer's files, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from backend.command_line import CONTEXT_SETTINGS, run
from backend.errors import TemplateError
from backend.model_source import open_model
from backend.text.chat_template import ChatTemplate
from backend.text.tokenizer import Tokenizer

EPILOG = """\b
Examples:
  python -m backend.show_prompt internlm2 ./workspace "Tell me a story about a fox."
  python -m backend.show_prompt internlm2 ./workspace --system "Be brief." "Hello!" "Hi, how are you?" "Well."
  python -m backend.show_prompt internlm2 /path/to/internlm2-chat-7b --tools tools.json "What is 2 + 3?"
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=EPILOG)
@click.argument("model_name")
@click.argument("model_path")
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("--system", help="A system message that begins the conversation.")
@click.option("--tools", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A JSON file with a list of tools as in OpenAI's API.")
def main(model_name: str, model_path: str, prompts: tuple[str, ...], system: str | None, tools: Path | None) -> None:
    """Print the text and the token ids that PROMPTs become: the user's and the assistant's in turn.

    MODEL_PATH is a workspace or a Hugging Face folder; MODEL_NAME chooses the built-in chat template where it brings
    none."""
    folder = open_model(model_path, model_name).tokenizer_dir
    template, tokenizer = ChatTemplate.load(folder, model_name), Tokenizer(folder)
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[index % 2], "content": prompt} for index, prompt in enumerate(prompts)]
    text = template.render(messages, _read_tools(tools) if tools else None,
                           add_generation_prompt=len(prompts) % 2 == 1)
    ids = tokenizer.encode(text)
    click.echo(text)
    click.echo(f"\n{len(ids)} tokens, from {template.origin}; an answer ends at "
               f"{', '.join(map(repr, template.stop)) or 'no text'}:")
    click.echo(" ".join(f"{token_id}:{tokenizer.id_to_token(token_id)!r}" for token_id in ids))


def _read_tools(file: Path) -> list[dict[str, Any]]:
    try:
        tools = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TemplateError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(tools, list):
        raise TemplateError(f"{file} holds a {type(tools).__name__}; give a list of tools")
    return tools


if __name__ == "__main__":
    run(main)
