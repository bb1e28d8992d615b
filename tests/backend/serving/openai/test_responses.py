"""/v1/responses on the demo model."""

from __future__ import annotations

import json

import pytest

PATH = "/v1/responses"
STORY = "Tell me a story about a fox and a rabbit."


def text_of(response):
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def events_of(api, **fields):
    answer = api.post(PATH, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.split("\ndata: ")[1]) for event in answer.text.split("\n\n") if event]


def test_an_answer_equals_the_chat_endpoint_s(api):
    response = api.ask(PATH, input=STORY, instructions="You are kind.", temperature=0, max_output_tokens=30)
    chat = api.ask("/v1/chat/completions", temperature=0, max_tokens=30, messages=[
        {"role": "system", "content": "You are kind."}, {"role": "user", "content": STORY}])
    assert text_of(response) == chat["choices"][0]["message"]["content"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (chat["usage"]["prompt_tokens"], 30)
    assert usage["total_tokens"] == usage["input_tokens"] + 30


def test_a_stream_ends_with_the_unstreamed_answer(api):
    fields = {"input": STORY, "seed": 4, "max_output_tokens": 30, "stop": [" the "], "top_logprobs": 2}
    whole, events = api.ask(PATH, **fields), events_of(api, **fields)
    streamed = events[-1]["response"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == text_of(streamed) == text_of(whole)
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    logprobs = [token for event in deltas for token in event["logprobs"]]
    part = whole["output"][0]["content"][0]
    assert [token["token"] for token in logprobs] == [token["token"] for token in part["logprobs"]] != []
    assert all(len(token["top_logprobs"]) == 2 for token in logprobs)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_a_conversation_goes_on_from_a_stored_answer(api):
    first = api.ask(PATH, input="My name is Anna.", instructions="You are kind.", temperature=0, max_output_tokens=30)
    second = api.ask(PATH, input="What is my name?", previous_response_id=first["id"], temperature=0,
                     max_output_tokens=30)
    items = [{"role": "user", "content": "My name is Anna."}, *first["output"],
             {"role": "user", "content": "What is my name?"}]
    whole = api.ask(PATH, input=items, temperature=0, max_output_tokens=30)
    assert text_of(second) == text_of(whole)  # without the instructions, which are not carried over
    assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert second["previous_response_id"] == first["id"]


def test_a_stored_answer_can_be_read_listed_and_deleted(api):
    streamed = events_of(api, input="Hello!", max_output_tokens=5)[-1]["response"]
    place = f"{PATH}/{streamed['id']}"
    assert api.client.get(place).json() == streamed
    later = api.ask(PATH, input="And then?", previous_response_id=streamed["id"], max_output_tokens=5)
    items = api.client.get(f"{PATH}/{later['id']}/input_items", params={"order": "asc"}).json()
    assert [item["role"] for item in items["data"]] == ["user", "assistant", "user"] and not items["has_more"]
    page = api.client.get(f"{PATH}/{later['id']}/input_items",
                          params={"limit": 1, "after": items["data"][2]["id"]}).json()
    assert page["data"] == [items["data"][1]] and page["has_more"]
    assert api.client.delete(place).json() == {"id": streamed["id"], "object": "response", "deleted": True}
    assert api.client.get(place).status_code == api.client.delete(place).status_code == 404
    assert api.client.get(f"{PATH}/{later['id']}").status_code == 200


def test_what_is_not_to_be_stored_is_not(api):
    response = api.ask(PATH, input="Hello!", store=False, max_output_tokens=5)
    assert api.client.get(f"{PATH}/{response['id']}").status_code == 404
    answer = api.post(PATH, input="Hello!", previous_response_id=response["id"])
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "previous_response_not_found"


@pytest.mark.parametrize("fields, words", [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": "a", "colour": 1}, "colour"),
    ({"input": "a", "conversation": "conv_1"}, "conversation"),
    ({"input": "a", "background": True}, "background"),
    ({"input": "a", "truncation": "auto"}, "truncation"),
    ({"input": "a", "reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"input": "a", "tools": [{"type": "web_search", "name": "a"}]}, "tools[0].type"),
    ({"input": "a", "tools": [{"type": "web_search"}]}, "only function tools are supported"),
    ({"input": "a", "tools": [{"type": "function", "name": "a", "parameters": {"type": "array"}}]},
     "tools[0].parameters has the type 'array'"),
    ({"input": "a", "tools": [{"type": "function", "name": "a"}, {"type": "function", "name": "b", "parameters": {
        "properties": {"x": {"type": "wizard"}}}}]}, "tools[1].parameters: the grammar or schema does not work"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]: type 'item_reference' is not supported here; "
     "use one of 'message', 'function_call', 'function_call_output'"),
    ({"input": [7]}, "input[0]: Input should be an object"),
    ({"input": "a", "text": {"format": {}}}, "the field text.format.type is missing; add it"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
     "input_image"),
    ({"input": "a", "max_output_tokens": 5000}, "session_len"),
])
def test_what_cannot_be_done_is_400_with_its_name(api, fields, words):
    response = api.post(PATH, **fields)
    assert response.status_code == 400 and words in response.json()["error"]["message"]


@pytest.mark.parametrize("items, place", [
    ([{"role": "user", "content": "a"},
      {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{}"},
      {"type": "function_call_output", "call_id": "zz", "output": "1"}], "input[2].call_id"),
    ([{"type": "function_call_output", "call_id": "a", "output": "1"}], "input[0].call_id")])
def test_a_result_of_a_call_that_nobody_made_is_refused(api, items, place):
    error = api.post(PATH, input=items).json()["error"]
    assert (error["param"], error["code"]) == (place, "invalid_value") and place in error["message"]


@pytest.mark.parametrize("path, query, param", [
    ("", {"stream": "true"}, "stream"), ("", {"include": "nothing"}, "include"), ("", {"colour": "red"}, "colour"),
    ("", {"starting_after": 1}, "starting_after"), ("/input_items", {"limit": 0}, "limit"),
    ("/input_items", {"limit": "x"}, "limit"), ("/input_items", {"order": "wizard"}, "order"),
    ("/input_items", {"include[]": "nothing"}, "include[]"), ("/input_items", {"after": "x"}, "after")])
def test_what_a_query_may_not_say_is_refused_with_its_name(api, path, query, param):
    response = api.ask(PATH, input="Hello!", max_output_tokens=2)
    answer = api.client.get(f"{PATH}/{response['id']}{path}", params=query)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert param in answer.json()["error"]["message"]


@pytest.mark.parametrize("query", [{"stream": "false"}, {"include": "message.output_text.logprobs"},
                                   {"include[]": ["message.output_text.logprobs", "reasoning.encrypted_content"]}])
def test_a_query_that_changes_nothing_is_accepted(api, query):
    response = api.ask(PATH, input="Hello!", max_output_tokens=2)
    assert api.client.get(f"{PATH}/{response['id']}", params=query).json() == response


def test_the_openai_client_reads_answers_and_streams(api):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none")
    response = client.responses.create(model="internlm2", input=STORY, temperature=0, max_output_tokens=20)
    with client.responses.stream(model="internlm2", input=STORY, temperature=0, max_output_tokens=20) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == response.output_text
    assert client.responses.retrieve(response.id).output_text == response.output_text
    type(response).model_validate(response.model_dump(), strict=False)


def function(name, description):
    return {"type": "function", "name": name, "description": description, "parameters": {
        "type": "object", "properties": {"a": {"type": "int"}, "b": {"type": "int"}}, "required": ["a", "b"]}}


TOOLS = [function("add", "Compute the sum of two numbers"), function("mul", "Calculate the product of two numbers")]
FUNCTIONS = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b}


@pytest.mark.parametrize("seed", range(4))
def test_logprobs_beside_tools_are_those_of_the_text(api, seed):
    """Some text is held back until it is known to begin no call; its logprobs come with it."""
    response = api.ask(PATH, input="Say something with < and | and [ in it: <|action", tools=TOOLS, seed=seed,
                       temperature=1.5, max_output_tokens=60, top_logprobs=0, stop=["qqq"],
                       include=["message.output_text.logprobs"], tool_choice="auto")
    for item in response["output"]:
        if item["type"] == "message":
            [part] = item["content"]
            assert "".join(token["token"] for token in part["logprobs"]).startswith(part["text"].rstrip())


def answer_to(api, stream, **fields):
    fields = {"temperature": 0, "tools": TOOLS, "max_output_tokens": 120, **fields}
    return events_of(api, **fields)[-1]["response"] if stream else api.ask(PATH, **fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("goes_on", [False, True])
def test_the_conversation_of_the_tutorials_ends_with_the_right_number(api, stream, goes_on):
    items = [{"role": "user", "content": "Compute (3+5)*2"}]
    response, called = answer_to(api, stream, input=items), []
    while calls := [item for item in response["output"] if item["type"] == "function_call"]:
        results = []
        for call in calls:
            called.append(call["name"])
            result = FUNCTIONS[call["name"]](**json.loads(call["arguments"]))
            results.append({"type": "function_call_output", "call_id": call["call_id"], "output": str(result)})
        items += [*response["output"], *results]
        earlier = {"input": results, "previous_response_id": response["id"]} if goes_on else {"input": items}
        response = answer_to(api, stream, **earlier)
        assert len(called) < 4
    assert called == ["add", "mul"] and "16" in text_of(response)


def test_a_response_whose_call_was_cut_off_can_be_gone_on_from(api):
    for count in range(10, 60):
        response = api.ask(PATH, input="Compute 3+5", temperature=0, tools=TOOLS, tool_choice="required",
                           max_output_tokens=count)
        call, = response["output"]
        if call["type"] == "function_call" and call["arguments"]:
            break
    assert response["status"] == "incomplete" and call["arguments"].startswith("{")
    assert api.ask(PATH, input="Go on", previous_response_id=response["id"], max_output_tokens=3)["output"]


def test_a_streamed_call_has_its_events(api):
    events = events_of(api, input="Compute 3+5", temperature=0, tools=TOOLS, max_output_tokens=120,
                       tool_choice={"type": "function", "name": "mul"})
    names = [event["type"].removeprefix("response.") for event in events]
    assert names[2] == "output_item.added" and names[-3:] == [
        "function_call_arguments.done", "output_item.done", "completed"]
    call, = events[-1]["response"]["output"]
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert call["name"] == "mul" and "".join(deltas) == call["arguments"]
    assert json.loads(call["arguments"]).keys() == {"a", "b"} and len(deltas) > 1


def test_a_stop_text_cuts_no_call(api):
    question = {"input": "Compute 17+25", "tools": TOOLS, "temperature": 0}
    *_, call = api.ask(PATH, **question, stop=['"b"'])["output"]
    assert call["type"] == "function_call" and json.loads(call["arguments"]) == {"a": 17, "b": 25}


def test_text_follows_a_schema(api):
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer"}},
              "required": ["name", "age"], "additionalProperties": False}
    text = {"format": {"type": "json_schema", "name": "person", "schema": schema, "strict": True}}
    response = api.ask(PATH, input="Who is the fox?", text=text, temperature=0, max_output_tokens=80)
    assert json.loads(text_of(response)).keys() == {"name", "age"}
    assert response["text"] == text
    anything = api.ask(PATH, input="Who is the fox?", text={"format": {"type": "json_object"}}, seed=2,
                       max_output_tokens=80)
    assert text_of(anything).startswith("{")


def test_a_schema_that_cannot_be_followed_is_400(api):
    text = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nonsense"}}}
    response = api.post(PATH, input="a", text=text)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("fields", [
    {"metadata": {"a": "\ud800"}}, {"stop": "\ud800"}, {"instructions": "\ud800"},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "annotations": ["\ud800"]}]}]}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_lone_surrogate_is_refused_wherever_it_stands(api, fields, stream):
    body = json.dumps({"input": STORY, "max_output_tokens": 2, "stream": stream, **fields})
    answer = api.client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert "nicode" in answer.json()["error"]["message"]
