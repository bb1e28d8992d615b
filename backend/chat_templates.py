"""Built-in chat templates: which conversation format a MODEL_NAME means where the checkpoint brings none.

Plain data: names and Jinja sources, no sampling parameters. The formats are those that the models' publishers document;
the names are those that LMDeploy's users type. Used by text/chat_template.py (rendering) and the converter (the name's
check); imports no torch and no Jinja."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from backend.errors import TemplateError


@dataclass(frozen=True, slots=True)
class BuiltinTemplate:
    """A conversation format. `stop`: texts that end an answer, besides the tokenizer's EOS."""

    name: str
    source: str
    stop: tuple[str, ...] = ()


def builtin_template(model_name: str) -> BuiltinTemplate:
    """The built-in template that a model name means; a size, a version or `-hf` in the name does not matter.

    A chat family's name with a size but without a word like `chat` is its base model, which completes plain text.
    Raises TemplateError that lists the known names, the nearest first."""
    name = re.sub(r"[\s_]+", "-", model_name.strip().lower().rsplit("/")[-1])
    for pattern, chat, plain in _FAMILIES:
        match = re.match(pattern + r"(?![a-z0-9])", name)
        if match:
            rest = name[match.end():]
            is_base = re.search(r"\bbase\b|-\d+(\.\d+)?b\b", rest) and not _CHAT_WORDS.search(rest)
            return _TEMPLATES[plain if is_base else chat]
    nearest = difflib.get_close_matches(name, KNOWN_MODEL_NAMES, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise TemplateError(f"no chat template is known for {model_name!r}; {hint}known are {', '.join(KNOWN_MODEL_NAMES)}")


_CHAT_WORDS = re.compile(r"\b(chat|instruct|it|sft|math|dpo|rlhf)\b")

# A name's beginning, its chat template, and the template of a name that means the base model. The longest come first.
_FAMILIES = (
    (r"internlm-?(2[-.]?5|2|3)", "internlm2", "base"),
    (r"internlm", "internlm", "base"),
    (r"(meta-)?(code)?llama-?3[-.][123]", "llama3.1", "base"),
    (r"(meta-)?llama-?3", "llama3", "base"),
    (r"(meta-)?llama-?2", "llama2", "base"),
    (r"codellama", "llama2", "base"),
    (r"llama", "base", "base"),
    (r"vicuna", "vicuna", "vicuna"),
    (r"qwen-?2[-.]?5", "qwen2.5", "qwen2.5"),
    (r"qwen-?(1\.5|2)", "qwen2", "qwen2"),
    (r"qwen-?3", "qwen3", "qwen3"),
    (r"qwen", "qwen2", "qwen2"),
    (r"mi[sx]tral", "mistral", "base"),
    (r"chatml", "chatml", "chatml"),
    (r"base", "base", "base"),
)

KNOWN_MODEL_NAMES = (
    "base", "chatml", "codellama", "internlm", "internlm-7b", "internlm-chat-7b", "internlm-chat-20b", "internlm2",
    "internlm2-7b", "internlm2-chat-7b", "internlm2.5", "internlm2.5-chat-7b", "llama", "llama-7b", "llama2",
    "llama-2-7b", "llama-2-7b-chat", "llama3", "llama-3-8b-instruct", "llama3.1", "llama-3.1-8b-instruct", "mistral",
    "mistral-7b-instruct", "qwen", "qwen-7b", "qwen2", "qwen2.5", "qwen3", "vicuna", "vicuna-7b", "vicuna-13b",
)

_BASE = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"

# InternLM-Chat: `<eoa>` ends an answer. The `<eoh>` of its first weeks was dropped in September 2023.
_INTERNLM = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ '<|System|>:' + message.content + '\n' }}
    {%- elif message.role == 'user' %}{{ '<|User|>:' + message.content + '\n' }}
    {%- elif message.role == 'assistant' %}{{ '<|Bot|>:' + message.content + '<eoa>\n' }}
    {%- else %}{{ raise_exception('the role ' + message.role + ' does not exist in the internlm template') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Bot|>:' }}{% endif %}"""

# InternLM2's and 2.5's ChatML: tools are a system block named by the plugin token, results come from `environment`.
# A message of these roles may carry name="plugin" or name="interpreter".
_INTERNLM2 = """\
{%- macro block(role, name, content) %}
    {{- '<|im_start|>' + role + (' name=<|' + name + '|>' if name in ('plugin', 'interpreter') else '') + '\n' }}
    {{- content + '<|im_end|>\n' }}
{%- endmacro %}
{%- macro tool_block() %}
    {%- set functions = namespace(list=[]) %}
    {%- for tool in tools %}
        {%- set functions.list = functions.list + [tool.function if tool.function is defined else tool] %}
    {%- endfor %}
    {{- block('system', 'plugin', functions.list | tojson) }}
{%- endmacro %}
{{- bos_token }}
{%- if tools and messages[0].role != 'system' %}{{ tool_block() }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function if call.function is defined else call %}
            {{- '<|action_start|><|plugin|>\n' }}
            {{- {'name': function.name, 'parameters': function.arguments} | tojson }}
            {{- '<|action_end|>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}{{ block('environment', 'plugin', message.content) }}
    {%- elif message.role in ('system', 'user', 'environment') %}
        {{- block(message.role, message.name, message.content) }}
    {%- else %}{{ raise_exception('the role ' + message.role + ' does not exist in the internlm2 template') }}
    {%- endif %}
    {%- if tools and loop.first and message.role == 'system' %}{{ tool_block() }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Qwen's formats without tools differ only in the system line that is there when none is given.
_CHATML = """\
{%- if default_system and messages[0].role != 'system' %}
    {{- '<|im_start|>system\n' + default_system + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ('system', 'user', 'assistant') %}
        {{- raise_exception('the role ' + message.role + ' does not exist in the chatml template') }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Qwen2.5 and 3 call tools as Hermes did: functions and calls between tags, results as a user's turn.
_QWEN = """\
{%- set first = messages[0].content if messages[0].role == 'system' else default_system %}
{%- if tools %}
    {{- '<|im_start|>system\n' + (first + '\n\n' if first else '') + '# Tools\n\n' }}
    {{- 'You may call one or more functions to assist with the user query.\n\n' }}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n' }}
    {%- for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}
    {{- '</tools>\n\nFor each function call, return a json object with function name and arguments within ' }}
    {{- '<tool_call></tool_call> XML tags:\n<tool_call>\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif first %}{{ '<|im_start|>system\n' + first + '<|im_end|>\n' }}
{%- endif %}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.previtem is not defined or loop.previtem.role != 'tool' }}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {{- '<|im_end|>\n' if loop.nextitem is not defined or loop.nextitem.role != 'tool' }}
    {%- elif message.role in ('system', 'user', 'assistant') %}
        {{- '<|im_start|>' + message.role + '\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- ('\n' if message.content or not loop.first else '') + '<tool_call>\n' }}
            {{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}{{ raise_exception('the role ' + message.role + ' does not exist in the qwen template') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Llama 2, Code Llama and Mistral: the system text stands inside the first user turn.
_INST = """\
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
    {%- if message.role == 'user' %}
        {{- (bos_token if loop.first or repeat_bos else '') + '[INST] ' }}
        {{- system_start + system + system_end if loop.first and system }}
        {{- message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}
    {%- else %}{{ raise_exception('the role ' + message.role + ' does not exist in this [INST] template') }}
    {%- endif %}
{%- endfor %}"""

_LLAMA3 = """\
{%- macro block(role, content) %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + content | trim + '<|eot_id|>' }}
{%- endmacro %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ('system', 'user', 'assistant') %}
        {{- raise_exception('the role ' + message.role + ' does not exist in the llama3 template') }}
    {%- endif %}
    {{- block(message.role, message.content) }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# Llama 3.1: tools in the system block, calls as JSON with name and parameters, results from `ipython`.
_LLAMA31 = """\
{%- macro block(role, content) %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + content | trim + '<|eot_id|>' }}
{%- endmacro %}
{{- bos_token }}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' %}
{%- if tools %}
    {%- set described %}
        {{- 'Environment: ipython\n\n' }}
        {{- 'To use a function, answer only with JSON: {"name": its name, "parameters": an object of arguments}.\n' }}
        {{- 'Functions:\n' }}
        {%- for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}
    {%- endset %}
    {{- block('system', described + '\n' + system) }}
{%- elif system %}{{ block('system', system) }}
{%- endif %}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {%- if message.tool_calls | length > 1 %}
            {{- raise_exception('llama3.1 calls one function at a time; send each call and its result by themselves') }}
        {%- endif %}
        {%- set function = message.tool_calls[0].function %}
        {{- block('assistant', {'name': function.name, 'parameters': function.arguments} | tojson) }}
    {%- elif message.role in ('tool', 'ipython') %}{{ block('ipython', message.content) }}
    {%- elif message.role in ('user', 'assistant') %}{{ block(message.role, message.content) }}
    {%- else %}{{ raise_exception('the role ' + message.role + ' does not exist in the llama3.1 template') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# Vicuna 1.1 and later was trained with this system line (FastChat, vicuna_v1.1).
_VICUNA = """\
{%- set default = "A chat between a curious user and an artificial intelligence assistant. \
The assistant gives helpful, detailed, and polite answers to the user's questions." %}
{{- bos_token + (messages[0].content if messages[0].role == 'system' else default) + ' ' }}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
    {%- if message.role == 'user' %}{{ 'USER: ' + message.content + ' ASSISTANT:' }}
    {%- elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}
    {%- else %}{{ raise_exception('the role ' + message.role + ' does not exist in the vicuna template') }}
    {%- endif %}
{%- endfor %}"""


def _set(source: str, **values: str | bool) -> str:
    """A source with values fixed, so that formats which differ in a text or two share one template."""
    fixed = "".join(f"{{%- set {name} = {value!r} %}}" for name, value in values.items())
    return fixed + source


_IM_END = ("<|im_end|>",)
_TEMPLATES = {
    template.name: template
    for template in (
        BuiltinTemplate("base", _BASE),
        BuiltinTemplate("internlm", _INTERNLM, ("<eoa>",)),
        BuiltinTemplate("internlm2", _INTERNLM2, ("<|im_end|>", "<|action_end|>")),
        BuiltinTemplate("chatml", _set(_CHATML, default_system=""), _IM_END),
        BuiltinTemplate("qwen2", _set(_CHATML, default_system="You are a helpful assistant."), _IM_END),
        BuiltinTemplate("qwen2.5", _set(_QWEN, default_system="You are Qwen, created by Alibaba Cloud. "
                                                              "You are a helpful assistant."), _IM_END),
        BuiltinTemplate("qwen3", _set(_QWEN, default_system=""), _IM_END),
        BuiltinTemplate("llama2", _set(_INST, repeat_bos=True, system_start="<<SYS>>\n",
                                       system_end="\n<</SYS>>\n\n"), ("</s>",)),
        BuiltinTemplate("mistral", _set(_INST, repeat_bos=False, system_start="", system_end="\n\n"), ("</s>",)),
        BuiltinTemplate("llama3", _LLAMA3, ("<|eot_id|>", "<|end_of_text|>")),
        BuiltinTemplate("llama3.1", _LLAMA31, ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")),
        BuiltinTemplate("vicuna", _VICUNA, ("</s>",)),
    )
}
