"""Chat template option: what --chat-template may be, read into a ChatTemplate. Used by backend/serve.py.

A built-in template's name, a file of Jinja, or LMDeploy's JSON (a file or the text itself), which names the pieces put
around each role's messages: system, eosys, user, eoh, assistant, eoa, separator, meta_instruction, stop_words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backend.chat_templates import BuiltinTemplate, builtin_template
from backend.errors import TemplateError
from backend.text.chat_template import ChatTemplate
from backend.tokenizer_files import read_settings

_PIECES = ("system", "eosys", "user", "eoh", "assistant", "eoa", "separator")
_KEYS = {"model_name", "meta_instruction", "stop_words", "capability", *_PIECES}


def read_chat_template(option: str | None, tokenizer_dir: Path) -> ChatTemplate | None:
    """The template that the option means, with the special tokens of `tokenizer_dir`; None where it is not given.

    Raises TemplateError."""
    if not option:
        return None
    tokens = read_settings(tokenizer_dir).special_tokens
    file = Path(option).expanduser()
    is_file = not option.lstrip().startswith("{") and file.is_file()
    text = file.read_text(encoding="utf-8") if is_file else option
    if is_file and file.suffix != ".json":
        return ChatTemplate(f"the template {file}", {"default": text}, tokens)
    if not is_file and not text.lstrip().startswith("{"):
        return _of_builtin(builtin_template(text), tokens)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise TemplateError(f"--chat-template is neither a file nor JSON ({error}); give a file, LMDeploy's JSON, or a "
                            "built-in template's name") from None
    return _of_lmdeploy(config, tokens)


def _of_builtin(builtin: BuiltinTemplate, tokens: dict[str, str], meta_instruction: str | None = None) -> ChatTemplate:
    source = builtin.source if meta_instruction is None else _default_system(meta_instruction) + builtin.source
    return ChatTemplate(f"the built-in template {builtin.name!r}", {"default": source}, tokens, builtin.stop)


def _of_lmdeploy(config: Any, tokens: dict[str, str]) -> ChatTemplate:
    if not isinstance(config, dict) or not config:
        raise TemplateError("--chat-template: the JSON is no object with LMDeploy's keys, such as user and assistant")
    config = {key: value for key, value in config.items() if value is not None}
    unknown = sorted(config.keys() - _KEYS)
    if unknown:
        raise TemplateError(f"--chat-template: {', '.join(unknown)} is not known; use {', '.join(sorted(_KEYS))}")
    if config.get("capability", "chat") != "chat":
        raise TemplateError(f"--chat-template: capability={config['capability']!r} does not work; use chat")
    pieces = {name: _text(config, name) for name in _PIECES}
    meta_instruction = _text(config, "meta_instruction") or None
    stop = config.get("stop_words")
    if stop is not None and not (isinstance(stop, list) and all(isinstance(word, str) for word in stop)):
        raise TemplateError("--chat-template: stop_words is no list of texts; give one")
    if not any(pieces.values()) and stop is None:
        return _of_builtin(builtin_template(_text(config, "model_name")), tokens, meta_instruction)
    if not (pieces["user"] and pieces["assistant"]):
        raise TemplateError("--chat-template: user and assistant are missing; give every piece of the format, or only "
                            "model_name and meta_instruction")
    return ChatTemplate("the template of --chat-template", {"default": _source(pieces, meta_instruction)}, tokens, stop)


def _text(config: dict[str, Any], name: str) -> str:
    value = config.get(name, "")
    if not isinstance(value, str):
        raise TemplateError(f"--chat-template: {name} is no text; give one")
    return value


def _source(pieces: dict[str, str], meta_instruction: str | None) -> str:
    """Jinja that puts each message between its role's two pieces."""
    begins = {"system": pieces["system"], "user": pieces["user"], "assistant": pieces["assistant"]}
    ends = {"system": pieces["eosys"], "user": pieces["eoh"], "assistant": pieces["eoa"] + pieces["separator"]}
    return (f"{_default_system(meta_instruction)}{{%- set begins = {begins!r} %}}{{%- set ends = {ends!r} %}}"
            "{{- bos_token }}{%- for message in messages %}"
            "{%- if message.role not in begins %}"
            "{{- raise_exception('the role ' + message.role + ' does not exist in this template') }}{%- endif %}"
            "{{- begins[message.role] + message.content + ends[message.role] }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- begins['assistant'] }}{%- endif %}")


def _default_system(meta_instruction: str | None) -> str:
    """Jinja that begins a conversation without a system message with this one."""
    if meta_instruction is None:
        return ""
    message = {"role": "system", "content": meta_instruction}
    return (f"{{%- if not messages or messages[0].role != 'system' %}}{{%- set messages = [{message!r}] + messages %}}"
            "{%- endif %}")
