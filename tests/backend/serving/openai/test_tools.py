"""Tools in /v1/chat/completions on the demo model, which was trained on InternLM2.5's format."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from backend.model_source import open_model
from backend.serving.openai.server import OpenAiServer
from backend.text.chat_template_option import read_chat_template
from backend.text.front_end import TextFrontEnd
from tests.backend.serving.openai.conftest import ANSWER_TIMEOUT_S, CHECKPOINT, Api

PATH = "/v1/chat/completions"


def tool(name: str, description: str, **types: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": {key: {"type": kind} for key, kind in types.items()},
        "required": list(types)}}}


ADD = tool("add", "Compute the sum of two numbers", a="int", b="int")
MUL = tool("mul", "Calculate the product of two numbers", a="int", b="int")
TOOLS = [ADD, MUL]
NAMED = {"type": "function", "function": {"name": "mul"}}
FUNCTIONS = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b}


def ask(api: Api, messages: list[dict[str, Any]], stream: bool = False, **fields: Any) -> dict[str, Any]:
    """The first choice of a greedy answer; a streamed one put together from its deltas."""
    fields = {"temperature": 0, "tools": TOOLS, "max_tokens": 120, **fields}
    if not stream:
        return api.ask(PATH, messages=messages, **fields)["choices"][0]
    return joined(api.stream(PATH, messages=messages, **fields))


def joined(events: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    content, calls, reason, logprobs = None, [], None, None
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        assert reason is None
        delta, reason = choice["delta"], choice["finish_reason"]
        if delta.get("content") is not None:
            content = (content or "") + delta["content"]
        if choice["logprobs"] is not None:
            logprobs = {"content": [*(logprobs or {"content": []})["content"], *choice["logprobs"]["content"]],
                        "refusal": None}
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                assert call["type"] == "function" and call["id"] and call["function"]["name"]
                calls.append({"id": call["id"], "type": "function", "function": {**call["function"]}})
            else:
                assert call.keys() == {"index", "function"} and call["function"].keys() == {"arguments"}
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    calls = [call["function"] for call in choice["message"].get("tool_calls", ())]
    return {**choice, "message": {**choice["message"], "tool_calls": calls}}


def call_of(choice: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    call, = choice["message"]["tool_calls"]
    return call["function"]["name"], json.loads(call["function"]["arguments"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("role", ["tool", "environment"])
def test_the_conversation_of_the_tutorials_ends_with_the_right_number(api, stream, role):
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Compute (3+5)*2"}]
    called, ids = [], set()
    while (choice := ask(api, messages, stream))["finish_reason"] == "tool_calls":
        messages.append(choice["message"])
        for call in choice["message"]["tool_calls"]:
            function = call["function"]
            called.append(function["name"])
            ids.add(call["id"])
            result = FUNCTIONS[function["name"]](**json.loads(function["arguments"]))
            answer = {"role": role, "content": str(result)}
            messages.append({**answer, "tool_call_id": call["id"]} if role == "tool" else {**answer, "name": "plugin"})
        assert len(called) < 4
    assert called == ["add", "mul"] and len(ids) == 2
    assert choice["finish_reason"] == "stop" and choice["message"]["content"] == "(3+5)*2 is 16."
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("has_logprobs", [False, True])
def test_streamed_and_unstreamed_answers_are_equal_for_every_choice(api, has_logprobs):
    fields = {"messages": [{"role": "user", "content": "Compute 17+25"}], "tools": TOOLS, "n": 3, "seed": 3,
              "temperature": 1.0, "max_tokens": 80, "logprobs": has_logprobs}
    whole, events = api.ask(PATH, **fields), api.stream(PATH, **fields)
    for index, choice in enumerate(whole["choices"]):
        assert without_ids(joined(events, index)) == without_ids(choice)
    ids = [call["id"] for choice in whole["choices"] for call in choice["message"].get("tool_calls", ())]
    assert len(set(ids)) == len(ids) > 0


def test_a_thought_before_a_call_is_content_and_the_name_comes_before_the_arguments(api):
    messages = [{"role": "user", "content": "Compute 17+25"}]
    choice = ask(api, messages)
    assert choice["message"]["content"] == "I will use add for this."
    assert call_of(choice) == ("add", {"a": 17, "b": 25}) and choice["finish_reason"] == "tool_calls"
    events = api.stream(PATH, messages=messages, temperature=0, tools=TOOLS)
    calls = [call for event in events for choice in event["choices"] for call in choice["delta"].get("tool_calls", ())]
    assert calls[0]["function"] == {"name": "add", "arguments": ""}
    assert len(calls) > 3 and "".join(call["function"]["arguments"] for call in calls) == '{"a": 17, "b": 25}'


def test_a_question_that_needs_no_tool_is_answered(api):
    choice = ask(api, [{"role": "user", "content": "What colour is the sky?"}])
    assert choice["finish_reason"] == "stop" and choice["message"]["content"]
    assert "tool_calls" not in choice["message"]


def test_no_tool_is_shown_where_none_may_be_called(api):
    question = [{"role": "user", "content": "What is 12 plus 30?"}]
    choice = ask(api, question, tool_choice="none")
    assert choice == ask(api, question, tools=None)
    assert "42" in choice["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tool_choice, names", [("required", {"add", "mul"}), (NAMED, {"mul"})])
@pytest.mark.parametrize("question", ["Compute 17+25", "What colour is the sky?"])
def test_a_call_that_must_be_made_is_made_whatever_is_asked(api, question, tool_choice, names, stream):
    choice = ask(api, [{"role": "user", "content": question}], stream, tool_choice=tool_choice,
                 parallel_tool_calls=False)
    name, arguments = call_of(choice)
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert name in names and arguments.keys() == {"a", "b"}
    assert all(isinstance(value, int) for value in arguments.values())


def test_a_conversation_goes_on_after_a_call_that_max_tokens_cut(api):
    messages = [{"role": "user", "content": "Compute 17+25"}]
    for max_tokens in range(10, 60):
        choice = ask(api, messages, tool_choice="required", max_tokens=max_tokens)
        calls = choice["message"].get("tool_calls")
        if calls and calls[0]["function"]["arguments"]:
            break
    assert choice["finish_reason"] == "length" and calls[0]["function"]["arguments"].startswith("{")
    with pytest.raises(ValueError):
        json.loads(calls[0]["function"]["arguments"])
    assert ask(api, [*messages, choice["message"], {"role": "user", "content": "Go on"}], max_tokens=3)


def test_arguments_follow_the_schema_even_against_the_models_will(api):
    words = tool("add", "Compute the sum of two numbers", a="string", b="boolean")
    _, arguments = call_of(ask(api, [{"role": "user", "content": "Compute 17+25"}], tools=[words]))
    assert isinstance(arguments["a"], str) and isinstance(arguments["b"], bool)


def test_an_answer_that_is_cut_off_in_a_call_says_length(api):
    messages = [{"role": "user", "content": "Compute 17+25"}]
    whole, streamed = (ask(api, messages, stream, max_tokens=22) for stream in (False, True))
    assert without_ids(whole) == without_ids(streamed)
    assert whole["finish_reason"] == "length"


@pytest.mark.parametrize("fields", [{"max_tokens": 3}, {"max_tokens": 8}, {"max_tokens": 60, "ignore_eos": True}])
def test_markup_of_a_call_that_was_cut_off_is_not_in_the_content(api, fields):
    messages = [{"role": "user", "content": "Compute (3+5)*2"}]
    whole, streamed = (ask(api, messages, stream, tool_choice="required", **fields) for stream in (False, True))
    assert without_ids(whole) == without_ids(streamed)
    assert not whole["message"]["content"] and whole["finish_reason"] == "length"


def test_a_special_token_of_the_format_is_not_in_the_content(api):
    choice = ask(api, [{"role": "user", "content": "Compute 17+25"}])
    assert "<|" not in json.dumps(choice)


@pytest.mark.parametrize("stop", ['"b"', ["{", ",", "<|action_start|>", "plug"]])
def test_a_stop_text_ends_content_and_no_call(api, stop):
    messages = [{"role": "user", "content": "Compute 17+25"}]
    choice = ask(api, messages)
    for stream in (False, True):
        assert without_ids(ask(api, messages, stream, stop=stop)) == without_ids(choice)
        cut = ask(api, messages, stream, stop=["use", stop[0]])
        assert cut["message"] == {"role": "assistant", "content": "I will ", "refusal": None}
        assert cut["finish_reason"] == "stop"


def test_stop_tokens_beside_tools_are_special_ones(api):
    tokenizer = api.context.front_end.tokenizer
    messages = [{"role": "user", "content": "Compute 17+25"}]
    response = api.post(PATH, messages=messages, tools=TOOLS, stop_token_ids=tokenizer.encode('"b"'))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "stop_token_ids"), error
    assert error["message"].startswith("stop_token_ids beside tools may only be special tokens")
    assert ask(api, messages, tool_choice="none", stop_token_ids=tokenizer.encode('"b"'), max_tokens=4)
    for marker in ("<|action_start|>", "<|plugin|>"):
        before = ask(api, messages, stop_token_ids=[tokenizer.token_to_id(marker)])
        assert before["message"]["content"] == "I will use add for this." and before["finish_reason"] == "stop"


def test_after_calls_an_answer_without_tools_knows_their_results(api):
    question = [{"role": "user", "content": "Compute 17+25"}]
    message = ask(api, question)["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "42"}
    for fields in ({"tool_choice": "none"}, {"tools": None}):
        answer = ask(api, [*question, message, result], **fields)
        assert answer["finish_reason"] == "stop" and "42" in answer["message"]["content"]


@contextlib.contextmanager
def with_template(api: Api, name: str) -> Iterator[Api]:
    """The same engine behind a server whose model seems to be of another family."""
    source = open_model(CHECKPOINT, "internlm2")
    front_end = TextFrontEnd(source, read_chat_template(name, source.tokenizer_dir))
    context = dataclasses.replace(api.context, front_end=front_end)
    server = OpenAiServer(context)
    port = api.run(server.start("127.0.0.1", 0))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_TIMEOUT_S) as client:
            yield Api(server, context, port, api.loop, client)
    finally:
        api.run(server.stop(grace_s=0))


def test_the_end_of_a_call_is_not_the_end_of_an_answer_where_the_template_says_so(api):
    """The built-in template's stop texts have <|action_end|>, for clients that read the calls themselves."""
    with with_template(api, "internlm2") as other:
        choice = ask(other, [{"role": "user", "content": "Compute 17+25"}])
        assert call_of(choice) == ("add", {"a": 17, "b": 25}) and choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_calls_have_indices_and_ids_of_their_own(api, stream):
    end_ids = [str(api.context.front_end.tokenizer.token_to_id(token)) for token in ("<|im_end|>", "</s>")]
    calls = ask(api, [{"role": "user", "content": "Compute 17+25"}], stream, max_tokens=150,
                logit_bias=dict.fromkeys(end_ids, -100))["message"]["tool_calls"]
    assert len(calls) > 2 and len({call["id"] for call in calls}) == len(calls)
    for call in calls[:-1]:  # the last one may be cut off
        assert call["function"]["name"] in FUNCTIONS
        assert json.loads(call["function"]["arguments"]).keys() == {"a", "b"}


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3.1"])
def test_a_call_that_must_be_made_is_made_in_the_format_of_each_family(api, name):
    choose = {"type": "function", "function": {"name": "choose", "parameters": {
        "type": "object", "properties": {"side": {"enum": ["left", "right }"]}, "sure": {"type": "bool"}},
        "required": ["side", "sure"]}}}
    with with_template(api, name) as other:
        assert other.context.front_end.tool_format.name == ("Llama 3.1" if name == "llama3.1" else "Hermes")
        for stream in (False, True):
            choice = ask(other, [{"role": "user", "content": "Left or right?"}], stream, tools=[choose],
                         tool_choice="required", parallel_tool_calls=False)
            called, arguments = call_of(choice)
            assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
            assert called == "choose" and arguments.keys() == {"side", "sure"}
            assert arguments["side"] in ("left", "right }") and isinstance(arguments["sure"], bool)


def test_a_model_whose_calls_cannot_be_read_takes_no_tools(api):
    with with_template(api, "vicuna") as other:
        response = other.post(PATH, messages=[{"role": "user", "content": "x"}], tools=TOOLS)
        assert response.status_code == 400 and "takes no tools" in response.json()["error"]["message"]


POINT = {"type": "json_schema", "json_schema": {"name": "point", "schema": {
    "type": "object", "properties": {"x": {"type": "int"}}, "required": ["x"], "additionalProperties": False}}}


@pytest.mark.parametrize("tool_choice, reasons", [("auto", {"tool_calls", "stop"}), ("none", {"stop"}),
                                                  ("required", {"tool_calls"})])
def test_an_answer_calls_or_has_its_response_format(api, tool_choice, reasons):
    choice = ask(api, [{"role": "user", "content": "Compute 17+25"}], tool_choice=tool_choice, response_format=POINT,
                 parallel_tool_calls=False)
    assert choice["finish_reason"] in reasons
    if choice["finish_reason"] == "tool_calls":
        assert choice["message"]["content"] is None and call_of(choice)[1].keys() == {"a", "b"}
    else:
        assert json.loads(choice["message"]["content"]).keys() == {"x"}


def test_what_clients_add_to_an_answer_may_be_sent_back(api):
    question = [{"role": "user", "content": "Compute 17+25"}]
    message = ask(api, question)["message"]
    call, = message["tool_calls"]
    sent = {**message, "parsed": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": [
        {**call, "index": 0, "function": {**call["function"], "parsed_arguments": {"a": 17, "b": 25}}}]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
    answer = ask(api, [*question, sent, result])
    assert answer == ask(api, [*question, message, result]) and "42" in answer["message"]["content"]


def with_parameters(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {}


RETIRED = [{"name": "add", "parameters": {}}]


@pytest.mark.parametrize("fields, param, cure", [
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "function"),
    ({"tools": [ADD, ADD]}, "tools", "give each function its own"),
    ({"tools": [tool("a b", "")]}, "tools[0].function.name", "pattern"),
    ({"tools": [{**ADD, "colour": 1}]}, "tools[0].colour", "leave it out"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice", "give tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice", "use one of add, mul"),
    ({"tool_choice": "any"}, "tool_choice", "auto"),
    ({"functions": RETIRED}, "functions", "use tools"),
    ({"function_call": "auto"}, "function_call", "use tool_choice"),
    ({"messages": [{"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}}]},
     "messages[0].function_call", "tool_calls"),
    ({"grammar": 'start: a\na: "b"'}, None, "cannot be followed beside tools"),
    ({"tools": [tool("f", "", a="what")]}, "tools[0].function.parameters", "Invalid type: what"),
    ({"tools": [ADD, tool("f", "", a="what"), tool("g", "", a="where")], "tool_choice": "required"},
     "tools[1].function.parameters", "tools[1].function.parameters: the grammar or schema does not work: Invalid type"),
    ({"tools": [ADD, with_parameters({"type": "array"})]}, "tools[1].function.parameters", "give a schema of type obj"),
    ({"tools": [ADD, with_parameters({"enum": [1, 2]})]}, "tools[1].function.parameters", "incompatible types"),
    ({"tools": [ADD, with_parameters({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}})]},
     "tools[1].function.parameters", "incompatible types"),
    ({"tools": [with_parameters({"properties": {"a": nested(70)}})]}, "tools[0].function.parameters", "deeper than 60"),
    ({"messages": [{"role": "function", "name": "add", "content": "3"}]}, "messages[0].role", "tool"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": "oops"}}]}]}, None, "not JSON"),
])
def test_what_does_not_work_is_refused_with_its_cure(api, fields, param, cure):
    response = api.post(PATH, **{"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, **fields})
    error = response.json()["error"]
    assert response.status_code == 400 and cure in error["message"], error
    if param is not None:
        assert error["param"] == param, error


def test_retired_fields_that_are_null_are_no_fault(api):
    assert ask(api, [{"role": "user", "content": "Hello"}], functions=None, function_call=None, max_tokens=4)
