"""OpenAI's own Python client: what it sends is understood, and what it gets is what its types expect."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from tests.examples.conftest import MODEL

SUM = [{"role": "user", "content": "What is seven plus twelve?"}]
ANSWER = "Seven plus twelve is nineteen."
PRODUCT_OF_SUM = [{"role": "user", "content": "Compute (3+5)*2"}]


def function(name: str, description: str, number: str) -> dict:
    """A function of two numbers, with the name that a tutorial gives the type of a number."""
    parameters = {"type": "object", "required": ["a", "b"],
                  "properties": {name: {"type": number, "description": "A number"} for name in ("a", "b")}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def functions(number: str) -> list[dict]:
    return [function("add", "Compute the sum of two numbers", number),
            function("mul", "Compute the product of two numbers", number)]


FUNCTIONS = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b}


@pytest.fixture(scope="module")
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def test_the_models_are_listed_and_one_can_be_retrieved(client):
    listed = client.models.list().data
    assert listed[0].id == MODEL and client.models.retrieve(MODEL) == listed[0]


def test_an_answer_has_its_counts_and_its_reason(client):
    answer = client.chat.completions.create(model=MODEL, messages=SUM, temperature=0)
    (choice,) = answer.choices
    assert (answer.object, choice.message.role, choice.message.content, choice.finish_reason) == (
        "chat.completion", "assistant", ANSWER, "stop")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens > 1
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_a_stream_says_the_same_and_then_its_counts(client):
    whole = client.chat.completions.create(model=MODEL, messages=SUM, temperature=0)
    *chunks, last = client.chat.completions.create(model=MODEL, messages=SUM, temperature=0, stream=True,
                                                   stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_the_clients_own_gathering_of_a_stream_agrees(client):
    with client.chat.completions.stream(model=MODEL, messages=SUM, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == text == ANSWER


def test_many_async_clients_are_answered_at_once(base_url):
    async def talk() -> list[str]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            async def stream(number: int) -> str:
                text = ""
                asked = [{"role": "user", "content": f"What is {number} plus 2?"}]
                async for chunk in await client.chat.completions.create(model=MODEL, messages=asked, temperature=0,
                                                                        stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text

            async def whole() -> str:
                answer = await client.chat.completions.create(model=MODEL, messages=SUM, temperature=0)
                return answer.choices[0].message.content

            return await asyncio.gather(*(stream(number) for number in range(1, 9)), whole())

    *sums, whole = asyncio.run(talk())
    assert all(str(number + 2) in text for number, text in enumerate(sums, 1)) and whole == ANSWER


def test_several_choices_seeds_and_logprobs(client):
    def ask() -> list:
        return client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Tell me a story."}], n=2, seed=7, temperature=1,
            max_completion_tokens=8, logprobs=True, top_logprobs=2).choices

    first, again = ask(), ask()
    assert [choice.message.content for choice in first] == [choice.message.content for choice in again]
    assert [choice.index for choice in first] == [0, 1] and first[0].finish_reason == "length"
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in first[0].logprobs.content)


def test_stop_texts_end_an_answer_and_are_cut(client):
    answer = client.chat.completions.create(model=MODEL, messages=SUM, temperature=0, stop=[" is", "never said"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Seven plus twelve", "stop")


@pytest.mark.parametrize(("fields", "error", "code", "param"), [
    ({"model": "none"}, openai.NotFoundError, "model_not_found", "model"),
    ({"temperature": 9}, openai.BadRequestError, None, "temperature"),
    ({"extra_body": {"temprature": 1}}, openai.BadRequestError, None, "temprature"),
    ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded", None),
    ({"messages": []}, openai.BadRequestError, None, "messages"),
])
def test_a_refused_request_is_the_clients_own_error_with_the_fields_name(client, fields, error, code, param):
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": MODEL, "messages": SUM, **fields})
    assert code in (None, raised.value.code) and param in (None, raised.value.param)
    assert str(raised.value.body["message"])


def test_a_stream_that_is_left_ends_on_the_server(client, server):
    with client.chat.completions.create(model=MODEL, messages=SUM, stream=True, extra_body={"ignore_eos": True},
                                        ) as stream:
        next(iter(stream))
    while server.run(server.context.engine.stats()).num_running:
        pass


@pytest.mark.parametrize("number", ["integer", "int"])
@pytest.mark.parametrize("role", ["tool", "environment"])
def test_add_and_multiply_ends_with_the_right_number(client, number, role):
    """As tutorials of function calling do it; `int`, `environment` and a result such as 3+5=8 are LMDeploy's."""
    messages, called = list(PRODUCT_OF_SUM), []
    while True:
        answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, tools=functions(number))
        (choice,) = answer.choices
        if choice.finish_reason != "tool_calls":
            break
        messages.append(choice.message)
        for call in choice.message.tool_calls:
            called.append(call.function.name)
            arguments = json.loads(call.function.arguments)
            result = FUNCTIONS[call.function.name](**arguments)
            sign = {"add": "+", "mul": "*"}[call.function.name]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)} if role == "tool" else
                            {"role": "environment", "name": "plugin",
                             "content": f"{arguments['a']}{sign}{arguments['b']}={result}"})
    assert called == ["add", "mul"] and "16" in choice.message.content and choice.finish_reason == "stop"


def test_streamed_calls_are_those_that_are_not_streamed(client):
    whole = client.chat.completions.create(model=MODEL, messages=PRODUCT_OF_SUM, temperature=0,
                                           tools=functions("integer")).choices[0]
    with client.chat.completions.stream(model=MODEL, messages=PRODUCT_OF_SUM, temperature=0,
                                        tools=functions("integer")) as stream:
        (streamed,) = stream.get_final_completion().choices
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    assert streamed.message.content == whole.message.content
    ((call,), (other,)) = (choice.message.tool_calls for choice in (whole, streamed))
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 3, "b": 5})
    assert (call.function.name, call.function.arguments) == (other.function.name, other.function.arguments)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "mul"}}])
def test_a_call_can_be_demanded(client, choice):
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello!"}],
                                            temperature=0, tools=functions("integer"), tool_choice=choice).choices[0]
    arguments = json.loads(answer.message.tool_calls[0].function.arguments)
    assert arguments.keys() == {"a", "b"} and all(isinstance(value, int) for value in arguments.values())
    if choice != "required":
        assert answer.message.tool_calls[0].function.name == "mul"


class Answer(BaseModel):
    kind: Literal["sum", "product"]
    is_right: bool


def test_parse_gives_an_object_of_the_class(client):
    parsed = client.chat.completions.parse(model=MODEL, messages=SUM, temperature=0, response_format=Answer)
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    with client.chat.completions.stream(model=MODEL, messages=SUM, temperature=0, response_format=Answer) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == parsed.choices[0].message.parsed


def test_responses_say_what_chats_say_and_follow_one_another(client):
    asked = client.responses.create(model=MODEL, input="My name is Ada.", temperature=0)
    assert "Ada" in asked.output_text and asked.status == "completed"
    recalled = client.responses.create(model=MODEL, input="What is my name?", temperature=0,
                                       previous_response_id=asked.id)
    assert recalled.output_text == "Your name is Ada."
    with client.responses.stream(model=MODEL, input=SUM[0]["content"], temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == ANSWER


def test_a_text_is_completed_streamed_and_not(client):
    whole = client.completions.create(model=MODEL, prompt="Once there was", temperature=0, max_tokens=12)
    streamed = client.completions.create(model=MODEL, prompt="Once there was", temperature=0, max_tokens=12,
                                         stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text != ""
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 12
