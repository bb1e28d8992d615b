"""Chat template: a conversation as the one text that a model was trained to continue.

The checkpoint's own Jinja template wins; a built-in (backend/chat_templates.py) stands in where there is none.
Templates are untrusted code: they run in Jinja's immutable sandbox with bounds on what they may print.
Used by serving, chat and show_prompt; knows no token ids except through a Tokenizer that is passed in."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backend.chat_templates import builtin_template
from backend.errors import TemplateError
from backend.text.tokenizer import Tokenizer
from backend.text.tool_messages import RESULT_ROLES, results_in_order
from backend.tokenizer_files import TokenizerSettings, read_settings

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "function", *RESULT_ROLES)
MAX_CHARACTERS = 16 * 2**20  # far above any session_len, far below what hurts
MAX_SECONDS = 10.0

# Stand-ins for a question and an answer, from the private use area so that no template changes or contains them.
_QUESTION, _ANSWER = "\ue000question\ue000", "\ue000answer\ue000"
_MARKER = re.compile(r"\s*(<[^<>\s]+>|\[[^\[\]\s]+\])")  # `<|im_end|>`, `</s>`, `[/INST]`


class ChatTemplate:
    """One model's conversation format.

    origin       where it comes from, for messages
    source       its Jinja, for clients that render it themselves
    stop         texts that end an answer, besides the model's end ids; `stop_tokens` splits them into ids and texts
    takes_tools  whether it has a place for functions that the model may call
    tool_source  the Jinja source that renders conversations with tools"""

    def __init__(self, origin: str, sources: Mapping[str, str], special_tokens: Mapping[str, str],
                 stop: Sequence[str] | None = None) -> None:
        """sources: name → Jinja source, with `default` or a single one; `tool_use` is taken where tools, calls or their
        results occur.
        stop: None derives it from how the template closes an answer. Raises TemplateError for a bad source."""
        self.origin = origin
        default = "default" if "default" in sources else next(iter(sources))
        # The special tokens' roles are always defined, so that a template may add a BOS that the vocabulary lacks.
        self._special_tokens = {"bos_token": "", "eos_token": "", **special_tokens}
        self.source = sources[default]
        self._templates = {"default": self._compile(self.source)}
        if "tool_use" in sources:
            self._templates["tool_use"] = self._compile(sources["tool_use"])
        self.takes_tools = "tool_use" in sources or "tools" in sources[default]
        self.tool_source = sources.get("tool_use", sources[default])
        self._sources = {"default": sources[default], "tool_use": self.tool_source}
        self.stop = tuple(stop) if stop is not None else self._derive_stop()

    @classmethod
    def load(cls, tokenizer_dir: Path, model_name: str | None = None) -> ChatTemplate:
        """The template in a tokenizer folder, else the built-in of model_name. Raises TemplateError if neither is."""
        settings = read_settings(Path(tokenizer_dir))
        if settings.chat_templates:
            return cls("the checkpoint's own template", _with_tool_use(settings), settings.special_tokens)
        if model_name is None:
            raise TemplateError(f"{tokenizer_dir} brings no chat template; give a model name that has a built-in one")
        builtin = builtin_template(model_name)
        return cls(f"the built-in template {builtin.name!r}", {"default": builtin.source}, settings.special_tokens,
                   builtin.stop)

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None,
               add_generation_prompt: bool = True, variables: Mapping[str, Any] | None = None) -> str:
        """The text of a conversation.

        messages               {"role", "content"} as in OpenAI's API; content is text, or parts of type text
        tools                  function descriptions as in OpenAI's API
        add_generation_prompt  end with the header of the assistant's next answer
        variables              further variables that this template reads, such as Qwen3's enable_thinking
        Raises TemplateError for a wrong message, a role that does not exist, or tools that the template cannot take."""
        checked = [_checked(message, index) for index, message in enumerate(_list(messages, "messages"))]
        if not checked:
            raise TemplateError("messages is empty; give at least one message")
        if tools and not self.takes_tools:
            raise TemplateError(f"{self.origin} takes no tools; leave them out, or use a model trained for tool calls")
        tools = [_checked_tool(tool, index) for index, tool in enumerate(_list(tools, "tools"))] if tools else None
        taken = sorted({"messages", "tools", "documents", "add_generation_prompt", *self._special_tokens}
                       & (variables or {}).keys())
        if taken:
            raise TemplateError(f"{', '.join(taken)} cannot be set as template variables; they are the conversation's "
                                "own")
        speaks_of_tools = tools or any(message.get("tool_calls") or message["role"] in RESULT_ROLES
                                       for message in checked)
        name = "tool_use" if speaks_of_tools and "tool_use" in self._templates else "default"
        if name == "tool_use":
            tools = tools or []  # such a template is written for a list
        template, source = self._templates[name], self._sources[name]
        checked = [{**message, "role": _known_role(message["role"], source)} for message in results_in_order(checked)]
        try:
            return _bounded(template.generate({
                **(variables or {}), **self._special_tokens, "messages": checked, "tools": tools, "documents": None,
                "add_generation_prompt": add_generation_prompt}))
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError,
                RecursionError, MemoryError) as error:
            raise TemplateError(f"{self.origin} refuses this conversation: {error}") from None

    def render_turn(self, message: Message, is_first: bool) -> str:
        """The text that a new turn adds to a conversation whose earlier text, answer included, is already held.

        For a later turn it begins with what closes the previous answer, so the holder's text must end with that answer
        without its stop text: held + answer + render_turn(message, False) is the conversation's text. The answer's own
        leading white space counts as part of the answer. It is read off the template itself, by rendering a probe
        conversation with and without the turn.
        Raises TemplateError where the template rewrites earlier turns, so that nothing can be appended."""
        if is_first:
            return self.render([message])
        content, frame = _checked(message, 0)["content"], ""
        while frame + _QUESTION in content or frame + _ANSWER in content:
            frame += "\ue001"  # the message holds a stand-in itself
        question = {"role": "user", "content": frame + _QUESTION}
        answer = {"role": "assistant", "content": frame + _ANSWER}
        held = self.render([question])
        whole = self.render([question, answer, message])
        gap, found, added = whole.removeprefix(held).partition(answer["content"])
        rewrites = gap.strip() or question["content"] in added or answer["content"] in added
        if not whole.startswith(held) or not found or rewrites:
            raise TemplateError(f"{self.origin} rewrites earlier turns, so a turn cannot be appended to a session; "
                                "send the whole conversation with each request")
        return added

    def stop_tokens(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """`stop` as SamplingParams wants it: (stop_ids, stop). A text that is one token becomes its id, because a
        special token leaves no text to match."""
        ids = {text: tokenizer.token_to_id(text) for text in self.stop}
        return (tuple(token_id for token_id in ids.values() if token_id is not None),
                tuple(text for text, token_id in ids.items() if token_id is None))

    def _compile(self, source: str) -> jinja2.Template:
        try:
            return _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{self.origin} is not valid Jinja, line {error.lineno}: {error.message}") from None

    def _derive_stop(self) -> tuple[str, ...]:
        """The marker that the template puts after an answer, and EOS."""
        try:
            text = self.render([{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}],
                               add_generation_prompt=False)
        except TemplateError:
            text = ""  # a template with other demands, such as a system message; EOS still ends the answer
        marker = _MARKER.match(text.partition(_ANSWER)[2])
        candidates = (marker[1] if marker else "", self._special_tokens["eos_token"])
        return tuple(dict.fromkeys(text for text in candidates if text))


def _with_tool_use(settings: TokenizerSettings) -> Mapping[str, str]:
    """A checkpoint's templates. InternLM2.5 was trained to call tools, and its vocabulary has the tokens for that, but
    its published template leaves tools out: the built-in one renders them."""
    sources = settings.chat_templates
    tokens = {*settings.additional_special_tokens, *(text for text, _ in settings.added_tokens.values())}
    if not {"<|action_start|>", "<|plugin|>"} <= tokens or any("tools" in source for source in sources.values()):
        return sources
    return {**sources, "tool_use": builtin_template("internlm2").source}


def _known_role(role: str, source: str) -> str:
    """A role by the name that a template has for it: results of tools have three names, and `developer` is new."""
    candidates = RESULT_ROLES if role in RESULT_ROLES else ("developer", "system") if role == "developer" else ()
    return next((name for name in (role, *candidates) if f"'{name}'" in source or f'"{name}"' in source), role)


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TemplateError(f"{name} is a {type(value).__name__}; give a list of objects as in OpenAI's API")
    return value


def _checked(message: Any, index: int) -> dict[str, Any]:
    """A message as templates expect it: text content, and tool-call arguments as objects."""
    if not isinstance(message, Mapping):
        raise TemplateError(f"messages[{index}] is a {type(message).__name__}; give an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise TemplateError(f"messages[{index}].role is {role!r}; use one of {', '.join(ROLES)}")
    checked = {**message, "content": _content(message.get("content"), index, bool(message.get("tool_calls")))}
    if message.get("tool_calls"):
        checked["tool_calls"] = [_tool_call(call, index) for call in _list(message["tool_calls"], "tool_calls")]
    return checked


def _checked_tool(tool: Any, index: int) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping):
        raise TemplateError(f"tools[{index}] is a {type(tool).__name__}; give an object with name, description and "
                            "parameters")
    return tool


def _content(content: Any, index: int, has_tool_calls: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and has_tool_calls:
        return ""
    if isinstance(content, (list, tuple)):
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise TemplateError(f"messages[{index}].content has a part that is no text; this model reads only text")
        return "".join(part["text"] for part in content)
    kind = "missing" if content is None else f"a {type(content).__name__}"
    raise TemplateError(f"messages[{index}].content is {kind}; give text")


def _tool_call(call: Any, index: int) -> dict[str, Any]:
    """OpenAI writes a call's arguments as JSON text, templates take an object. The beginning of one, which an answer
    that was cut off leaves, stays text: templates write it as such, and the conversation can go on."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TemplateError(f"messages[{index}].tool_calls has an entry without function.name")
    arguments = function.get("arguments") or {}
    is_cut = False
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            is_cut = arguments.lstrip().startswith("{")
            if not is_cut:
                raise TemplateError(f"messages[{index}].tool_calls: arguments of {function['name']} are not JSON: "
                                    f"{error}") from None
        except RecursionError:
            raise TemplateError(f"messages[{index}].tool_calls: arguments of {function['name']} are nested too deeply; "
                                "send flatter ones") from None
    if not is_cut and not isinstance(arguments, Mapping):
        raise TemplateError(f"messages[{index}].tool_calls: arguments of {function['name']} are no JSON object; "
                            "send them back as they came")
    return {**call, "function": {**function, "arguments": arguments}}


def _bounded(pieces: Any) -> str:
    """A template's output, refused where it grows or takes too long."""
    parts, size, deadline = [], 0, time.monotonic() + MAX_SECONDS
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MAX_CHARACTERS or time.monotonic() > deadline:
            raise TemplateError(f"a chat template printed more than {MAX_CHARACTERS:,} characters or took more than "
                                f"{MAX_SECONDS:.0f} s; shorten the conversation, or check the template's loops")
    return "".join(parts)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it only passes its body on."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes HTML characters and non-ASCII, which the models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    """The dialect of published templates, as transformers defines it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[jinja2.ext.loopcontrols, _Generation])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


_ENVIRONMENT = _environment()
