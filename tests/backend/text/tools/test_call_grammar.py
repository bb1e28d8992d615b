from __future__ import annotations

import llguidance
import pytest

from backend.errors import RequestError
from backend.text.grammar import json_schema_grammar
from backend.text.tools.call_grammar import call_grammar
from backend.text.tools.tool_format import ToolFormat, hermes_format
from backend.text.tools.tool_plan import plan_tools
from tests.backend.text.tools.formats import ADD, ANSWERS, FORMATS, HERMES, INTERNLM, SAY, TOOLS, tool, write

SPECIAL = ("<|action_start|>", "<|action_end|>", "<|plugin|>", "<|python_tag|>")


class Reader:
    """A vocabulary of one byte a token, and special tokens: what a grammar takes is seen letter by letter."""

    def __init__(self, special: tuple[str, ...] = SPECIAL) -> None:
        self.eos_token_id, self.bos_token_id = 256, None
        self._special = {text: 257 + index for index, text in enumerate(special)}
        self.tokens = [*(bytes([byte]) for byte in range(256)), b"<end>", *(text.encode() for text in special)]
        self.special_token_ids = list(range(256, len(self.tokens)))
        self._ours = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self))

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def taken(self, grammar: str, text: str) -> tuple[str, bool]:
        """How much of a text a grammar takes, and whether the answer may end there."""
        matcher, taken, rest = llguidance.LLMatcher(self._ours, grammar), b"", text.encode()
        assert not matcher.is_error(), matcher.get_error()
        while rest:
            token = next((text.encode() for text in self._special if rest.startswith(text.encode())), rest[:1])
            token_id = self._special.get(token.decode("utf-8", "replace"), token[0])
            # The text of a marker may also be ordinary letters, as inside of a string.
            ids = next((ids for ids in ([token_id], list(token)) if matcher.try_consume_tokens(ids) == len(ids)), None)
            if ids is None:
                break
            taken, rest = taken + token, rest[len(token):]
        return taken.decode("utf-8", "replace"), matcher.is_accepting()


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


def grammar(style: ToolFormat, choice: object = None, parallel: bool | None = None,
            tools: list[dict] = TOOLS) -> str:
    return call_grammar(style, plan_tools(tools, choice, parallel))


@pytest.mark.parametrize("style, text", [(style, text) for style, text, _, _ in ANSWERS])
def test_every_answer_that_the_parser_reads_may_be_written(reader, style, text):
    assert reader.taken(grammar(style), text) == (text, True)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
def test_once_a_call_has_begun_its_function_exists_and_its_arguments_fit(reader, style):
    for content in ("", "Hm. "):
        unknown = write(style, content, ("sub", "{}"))
        assert reader.taken(grammar(style), unknown) == (unknown[:unknown.index("ub")], False)
        for arguments, wrong in (('{"a": 1.5}', ".5"), ('{"a": 1, "c', "c"), ('{"b"', "b"), ('{"a": 1}', "}"),
                                 ("[", "[")):
            text = write(style, content, ("add", arguments))
            place = text.index(arguments) + arguments.index(wrong)
            assert reader.taken(grammar(style), text) == (text[:place], False)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
def test_a_call_that_must_be_made_begins_with_the_first_token(reader, style):
    required = grammar(style, "required")
    call = write(style, "", ADD)
    assert reader.taken(required, call) == (call, True)
    assert reader.taken(required, "") == ("", False)
    assert reader.taken(required, "Hm.")[0] == ""


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
def test_a_named_function_is_the_only_one(reader, style):
    named = grammar(style, {"type": "function", "function": {"name": "say"}})
    assert reader.taken(named, write(style, "", SAY)) == (write(style, "", SAY), True)
    other = write(style, "", ADD)
    assert reader.taken(named, other) == (other[:other.index("add")], False)


@pytest.mark.parametrize("choice", [None, "required"])
@pytest.mark.parametrize("style", [INTERNLM, HERMES], ids=lambda style: style.name)
def test_there_is_one_call_where_parallel_calls_are_not_wanted(reader, style, choice):
    one, two = write(style, "", ADD), write(style, "", ADD, SAY)
    assert reader.taken(grammar(style, choice, True), two) == (two, True)
    assert reader.taken(grammar(style, choice, False), two) == (one, True)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
def test_after_a_call_there_is_no_more_text(reader, style):
    call = write(style, "", ADD)
    assert reader.taken(grammar(style), call + " And") == (call, True)


@pytest.mark.parametrize("style", FORMATS, ids=lambda style: style.name)
def test_an_answer_calls_or_follows_its_own_format(reader, style):
    content = json_schema_grammar({"type": "object", "properties": {"name": {"enum": ["x"]}}, "required": ["name"]})
    both = call_grammar(style, plan_tools(TOOLS), content)
    for text in ('{"name": "x"}', write(style, "", ADD)):
        assert reader.taken(both, text) == (text, True)
    assert reader.taken(both, "Hm.")[0] == ""
    required = call_grammar(style, plan_tools(TOOLS, "required"), content)
    assert reader.taken(required, '{"name": "x"}')[1] is False


def test_a_grammar_of_several_rules_cannot_be_followed_beside_tools():
    with pytest.raises(RequestError, match="grammar cannot be followed beside tools"):
        call_grammar(INTERNLM, plan_tools(TOOLS), 'start: a\na: "b"')


def test_markers_that_are_special_tokens_are_taken_as_such():
    markers = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    style, reader = hermes_format(frozenset(markers)), Reader(markers)
    for text in ("Hm.\n" + write(HERMES, "", ADD, ("now", "{}")),
                 "<think>Hm.</think>\n\n" + write(HERMES, "", ADD), "<think>Hm.</think>\n\nNo."):
        assert reader.taken(grammar(style), text) == (text, True)
    call = write(HERMES, "", ADD)
    assert reader.taken(grammar(style, "required"), call) == (call, True)


@pytest.mark.parametrize("special", [(), ("<tool_call>", "</tool_call>", "<think>", "</think>"),
                                     ("<tool_call>", "</tool_call>")])
def test_where_the_prompt_opens_thoughts_every_answer_ends_them_before_it_calls(special):
    style, reader = hermes_format(frozenset(special), is_begun=True), Reader(special)
    call = write(HERMES, "", ADD)
    for choice, answers in ((None, ("No.", call, "Hm.\n" + call)), ("required", (call,))):
        for answer in answers:
            text = f"maybe {'<tool_call' if special else '<tool_call>'} now\n</think>\n\n{answer}"
            assert reader.taken(grammar(style, choice), text) == (text, True)
        assert not reader.taken(grammar(style, choice), "maybe")[1]
    assert reader.taken(grammar(style, "required"), "maybe</think>No")[0] == "maybe</think>"


def test_a_type_as_tutorials_spell_it_is_a_type(reader):
    tools = [tool("f", {"type": "object", "properties": {"n": {"type": "int"}, "x": {"type": "float"}},
                        "required": ["n", "x"]})]
    text = write(INTERNLM, "", ("f", '{"n": 3, "x": 2.5}'))
    assert reader.taken(grammar(INTERNLM, tools=tools), text) == (text, True)


