from __future__ import annotations

import pytest

from backend.errors import RequestError
from backend.text.tools.tool_plan import plan_tools

ADD = {"type": "function", "function": {"name": "add", "strict": True, "parameters": {
    "type": "object", "properties": {"a": {"type": "int"}}, "required": ["a"]}}}
NOW = {"type": "function", "function": {"name": "now"}}
BOTH = [ADD, NOW]


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


@pytest.mark.parametrize("choice, names, is_required", [
    (None, ["add", "now"], False), ("auto", ["add", "now"], False), ("required", ["add", "now"], True),
    (named("now"), ["now"], True), (allowed("auto", "now", "add"), ["add", "now"], False),
    (allowed("required", "add"), ["add"], True),
])
def test_a_choice_says_which_functions_may_and_whether_one_must_be_called(choice, names, is_required):
    plan = plan_tools(BOTH, choice)
    assert [function.name for function in plan.functions] == names
    assert [tool["function"]["name"] for tool in plan.tools] == names
    assert (plan.is_required, plan.is_parallel) == (is_required, True)


def test_one_call_is_allowed_where_parallel_calls_are_not():
    assert not plan_tools(BOTH, None, False).is_parallel


@pytest.mark.parametrize("tools, choice", [(BOTH, "none"), (None, None), ([], "auto"), (None, "none")])
def test_where_nothing_may_be_called_there_is_no_plan(tools, choice):
    assert plan_tools(tools, choice) is None


def test_the_model_is_shown_what_the_caller_wrote_but_strict():
    shown = plan_tools([ADD]).tools[0]
    assert shown == {"type": "function", "function": {"name": "add", "parameters": ADD["function"]["parameters"]}}


@pytest.mark.parametrize("given, schema", [
    (None, {"type": "object", "properties": {}, "additionalProperties": False}),
    ({}, {"type": "object"}),
    ({"properties": {"a": {}}}, {"properties": {"a": {}}, "type": "object", "additionalProperties": False}),
    ({"type": "object", "properties": {}, "additionalProperties": True},
     {"type": "object", "properties": {}, "additionalProperties": True}),
    ({"$ref": "#/$defs/x", "$defs": {"x": {}}}, {"$ref": "#/$defs/x", "$defs": {"x": {}}, "type": "object"}),
    ({"anyOf": [{"type": "object"}, {"type": "array"}]}, {"anyOf": [{"type": "object"}, {"type": "array"}],
                                                          "type": "object"}),
    ({"type": ["null", "dict"]}, {"type": "object"}),
])
def test_arguments_are_the_parameters_and_no_others(given, schema):
    function = {"name": "f"} if given is None else {"name": "f", "parameters": given}
    assert plan_tools([{"type": "function", "function": function}]).functions[0].parameters == schema


@pytest.mark.parametrize("kind", ["array", "string", "wizard", ["str", "null"], [], None, 5, {}])
def test_arguments_that_are_no_object_are_refused_with_their_field(kind):
    function = {"name": "f", "parameters": {"type": kind, "items": {"type": "int"}}}
    with pytest.raises(RequestError, match=r"tools\[1\].function.parameters has the type .* type object$") as refused:
        plan_tools([NOW, {"type": "function", "function": function}])
    assert refused.value.field == "tools[1].function.parameters"


@pytest.mark.parametrize("tools, choice, message", [
    ("x", None, "tools is a str; give a list"),
    ([{"type": "custom"}], None, r"tools\[0\].type is 'custom'; only functions"),
    ([7], None, r"tools\[0\].type is 'int'"),
    ([named("a b")], None, r"tools\[0\].function.name is 'a b'; use 1 to 64 letters"),
    ([named("a"), named("a")], None, r"tools\[1\]: the name 'a' is taken"),
    ([{"type": "function", "function": {"name": "f", "parameters": []}}], None, "parameters is a list; give a JSON"),
    ([named(f"f{index}") for index in range(129)], None, "129 functions; give at most 128"),
    (None, "required", "there are no tools"),
    (BOTH, "any", "tool_choice='any' does not work; use none, auto, required"),
    (BOTH, ["auto"], "does not work"),
    (BOTH, named("sub"), "tool_choice names 'sub', which is not among the tools; use one of add, now"),
    (BOTH, {"type": "function"}, "tool_choice names None"),
    (BOTH, {"type": "function", "function": {"name": []}}, r"tool_choice names \[\]"),
    (BOTH, allowed("auto", "sub"), "tool_choice.allowed_tools.tools names 'sub'"),
    (BOTH, allowed("auto"), "give mode"), (BOTH, allowed("none", "add"), "give mode"),
])
def test_what_does_not_work_is_refused_with_its_place(tools, choice, message):
    with pytest.raises(RequestError, match=message):
        plan_tools(tools, choice)
