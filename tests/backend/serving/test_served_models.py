"""The served models over a real engine and the demo model: tensors in, tensors out, as clients of 2023 and of now."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

pytest.importorskip("zmq")
pytest.importorskip("msgspec")

from backend.engine.async_engine import AsyncEngine
from backend.errors import ContextLengthError, RequestError, SessionError
from backend.model_source import open_model
from backend.serving.served_model import InferContext, ServedModel
from backend.serving.served_models import build_models
from backend.text.front_end import TextFrontEnd
from backend.text.tokenizer import LONG_TEXT_CHARACTERS, Tokenizer

CHECKPOINT = Path(__file__).parents[3] / "demo" / "checkpoint"
SESSION_LEN = 512
LONG_TEXT = "the fox " * (LONG_TEXT_CHARACTERS // 8)
T = TypeVar("T")
Models = dict[str, ServedModel]


@pytest.fixture(scope="module")
def play() -> Iterator[Callable[[Callable[[Models], Awaitable[T]]], T]]:
    """Runs a test's coroutine on the loop of one engine that all tests of this file share."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=90)

    source = open_model(CHECKPOINT, "internlm2")
    engine = AsyncEngine(source, source.engine.with_options({
        "session_len": SESSION_LEN, "max_batch_size": 8, "dtype": "float32", "cache_max_entry_count": 64}))
    run(engine.__aenter__())
    models = build_models(TextFrontEnd(source), engine)
    yield lambda act: run(act(models))
    run(engine.__aexit__())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def uint(*values: int) -> np.ndarray:
    return np.array([values], np.uint32)


def flag(value: int) -> np.ndarray:
    return np.array([value], np.int32)


def text(*values: str) -> np.ndarray:
    return np.array([[value.encode() for value in values]], object)


async def responses(models: Models, name: str, **tensors: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [response async for response in models[name].infer(tensors, InferContext())]


async def ids_of(models: Models, query: str) -> list[int]:
    (response,) = await responses(models, "preprocessing", QUERY=text(query), REQUEST_OUTPUT_LEN=uint(7))
    assert response["REQUEST_OUTPUT_LEN"].tolist() == [[7]]
    assert response["REQUEST_INPUT_LEN"].tolist() == [[response["INPUT_ID"].shape[1]]]
    return response["INPUT_ID"][0].tolist()


async def turn(models: Models, query: str, session: int | None = 5, new_tokens: int = 80, **extra: np.ndarray
               ) -> list[dict[str, np.ndarray]]:
    """A turn of the three-model flow; greedy."""
    ids = await ids_of(models, query)
    tensors = {"input_ids": uint(*ids).reshape(1, -1), "input_lengths": np.array([len(ids)], np.uint32),
               "request_output_len": uint(new_tokens), "temperature": np.array([0.0], np.float32), **extra}
    if session is not None:
        tensors["CORRID"] = np.array([session], np.uint64)
    return await responses(models, "turbomind", **tensors)


async def decoded(models: Models, last: dict[str, np.ndarray], start: int = 0) -> str:
    length = int(last["sequence_length"][0, 0])
    (response,) = await responses(models, "postprocessing", TOKENS_BATCH=last["output_ids"][:, :, start:],
                                  sequence_length=uint(length - start))
    return response["OUTPUT"][0, 0].decode()


def chatml(question: str, first: bool = True) -> str:
    return f"{'' if first else chr(10)}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


async def chat(models: Models, prompt: str | None = None, **tensors: np.ndarray) -> tuple[str, dict[str, Any]]:
    """A greedy turn of `chat`: its text, and the last response's other values."""
    if prompt is not None:
        tensors["PROMPT"] = text(prompt)
    tensors = {"TEMPERATURE": np.array([[0.0]], np.float32), "MAX_NEW_TOKENS": uint(80), **tensors}
    parts = await responses(models, "chat", **tensors)
    last = {name: value.item() for name, value in parts[-1].items()}
    assert [part["FINISH_REASON"].item() for part in parts[:-1]] == [b""] * (len(parts) - 1)
    return b"".join(part["TEXT"].item() for part in parts).decode(), last


def test_three_models_carry_a_session_over_turns(play):
    async def act(models: Models) -> None:
        first = await turn(models, chatml("My name is Ada."), START=flag(1), END=flag(0))
        length = int(first[-1]["sequence_length"][0, 0])
        assert first[-1]["output_ids"].shape == (1, 1, SESSION_LEN)
        assert not first[-1]["output_ids"][0, 0, length:].any()
        assert "Ada" in await decoded(models, first[-1], start=len(await ids_of(models, chatml("My name is Ada."))))
        second = await turn(models, chatml("What is my name?", first=False), START=flag(0), END=flag(1))
        # What was said before comes back whole, and only what was new was computed.
        assert second[0]["output_ids"][0, 0, :length].tolist() == first[-1]["output_ids"][0, 0, :length].tolist()
        assert second[0]["cached_tokens"].item() >= length - 1
        assert "Ada" in await decoded(models, second[-1], start=length)
        assert second[-1]["finish_reason"].item() == b"stop"
        with pytest.raises(SessionError, match="session 5 is not known"):
            await turn(models, chatml("What is my name?", first=False), START=flag(0), END=flag(0))
    play(act)


def test_new_ids_joined_are_the_whole_sequence(play):
    async def act(models: Models) -> None:
        parts = await turn(models, chatml("Count from 1 to 9."), session=None)
        prompt = await ids_of(models, chatml("Count from 1 to 9."))
        new = [token_id for part in parts for token_id in part["new_ids"][0].tolist()]
        length = int(parts[-1]["sequence_length"][0, 0])
        assert parts[-1]["output_ids"][0, 0, :length].tolist() == prompt + new
    play(act)


def test_step_rolls_back_and_log_probs_come_when_asked_for(play):
    async def act(models: Models) -> None:
        first = await turn(models, chatml("Hello!"), START=flag(1), END=flag(0), is_return_log_probs=np.array([True]))
        assert first[-1]["output_log_probs"].shape[2] == sum(part["new_ids"].shape[1] for part in first)
        assert first[-1]["cum_log_probs"].item() == pytest.approx(first[-1]["output_log_probs"].sum(), rel=1e-5)
        again = await turn(models, chatml("Hello!"), START=flag(0), END=flag(0), step=flag(0))
        assert again[-1]["output_ids"].tolist() == first[-1]["output_ids"].tolist()
        with pytest.raises(SessionError, match="step=500 cannot be reached"):
            await turn(models, chatml("Hello!"), START=flag(0), END=flag(0), step=flag(500))
    play(act)


def test_stop_and_bad_words_of_several_tokens_work(play):
    async def act(models: Models) -> None:
        question = chatml("Tell me a story about a fox and a rabbit.")
        free = await decoded(models, (await turn(models, question))[-1])
        (words,) = await responses(models, "preprocessing", QUERY=text("-"), STOP_WORDS_DICT=text(" quiet forest"),
                                   BAD_WORDS_DICT=text(" clever"))
        assert "quiet forest" in free and "clever" in free
        stopped = await turn(models, question, stop_words_list=words["STOP_WORDS_IDS"])
        assert (await decoded(models, stopped[-1])).endswith("quiet forest")
        assert stopped[-1]["finish_reason"].item() == b"stop"
        assert "clever" not in await decoded(models, (await turn(models, question,
                                                                 bad_words_list=words["BAD_WORDS_IDS"]))[-1])
    play(act)


def test_the_start_and_end_marks_of_2023_are_the_models_own_tokens(play):
    async def act(models: Models) -> None:
        assert await ids_of(models, "<BOS>") == [1]
        assert await ids_of(models, "<EOS>") == [2]
        assert (await ids_of(models, "<BOS>fox"))[0] == 1
        assert await ids_of(models, "") == []
    play(act)


def test_a_stop_request_interrupts_its_session(play):
    async def act(models: Models) -> None:
        slow = asyncio.create_task(turn(models, chatml("Count from 1 to 60."), START=flag(1), END=flag(0),
                                        new_tokens=300, end_id=np.array([0], np.uint32)))
        stop = {"input_ids": np.zeros((1, 0), np.uint32), "input_lengths": np.array([0], np.uint32),
                "request_output_len": uint(0), "CORRID": np.array([5], np.uint64), "STOP": flag(1)}
        while True:  # until the turn has begun
            try:
                (reply,) = await responses(models, "turbomind", **stop, START=flag(0), END=flag(0))
                break
            except SessionError as error:
                assert "not known" in str(error)
                await asyncio.sleep(0.01)
        assert reply["sequence_length"].item() == 0
        assert (await slow)[-1]["finish_reason"].item() == b"abort"
        with pytest.raises(SessionError, match="idle, so there is nothing to stop"):
            await responses(models, "turbomind", **stop, START=flag(0), END=flag(0))
        with pytest.raises(SessionError, match="START and STOP together"):
            await responses(models, "turbomind", **stop)
        await responses(models, "turbomind", **{**stop, "STOP": flag(0)}, START=flag(0), END=flag(1))
        with pytest.raises(SessionError, match="not known"):
            await responses(models, "turbomind", **{**stop, "STOP": flag(0)}, START=flag(0), END=flag(1))
    play(act)


@pytest.mark.parametrize(("extra", "message"), [
    ({"beam_width": np.array([4], np.uint32)}, "beam_width=4 is not implemented; leave it out, or send 1"),
    ({"top_p_decay": np.array([0.5], np.float32)}, "top_p_decay=0.5 is not implemented"),
    ({"runtime_top_p": np.array([1.5], np.float32)}, "top_p=1.5 is out of range"),
    ({"input_lengths": np.array([99], np.uint32)}, "input_lengths is 99, but input_ids holds"),
    ({"input_ids": uint(*[5] * 513), "input_lengths": uint(513)}, "513 prompt tokens exceed session_len=512"),
    ({"bad_words_list": np.array([[[5] * 300, [300] + [-1] * 299]], np.int32)}, "of 1 to 256 characters or ids"),
    ({"stop_words_list": np.array([[[5, 6], [9, -1]]], np.int32)}, "stop_words_list has the ends"),
    ({"request_output_len": uint(600)}, r"600 new .* exceed session_len=512"),
    ({"session_len": np.array([20], np.uint32)}, "exceed session_len=20"),
    ({"input_ids": uint(5, 4000), "input_lengths": np.array([2], np.uint32)}, "token id 4000"),
    ({"START": flag(0), "END": flag(0)}, "so CORRID has to name it"),
])
def test_wrong_values_are_refused_in_words(play, extra, message):
    async def act(models: Models) -> None:
        with pytest.raises(RequestError, match=message):
            await turn(models, chatml("Hello!"), session=None, **extra)
        assert await turn(models, chatml("Hello!"), session=None)
    play(act)


def test_chat_holds_a_conversation_in_one_call_a_turn(play):
    async def act(models: Models) -> None:
        session = {"CORRID": np.array([[9]], np.uint64)}
        text_1, first = await chat(models, "My name is Ada.", **session, START=np.array([[1]], np.int32))
        assert "Ada" in text_1
        text_2, second = await chat(models, "What is my name?", **session, START=np.array([[0]], np.int32))
        assert "Ada" in text_2
        assert second["CACHED_TOKENS"] >= first["SESSION_TOKENS"] - 1
        assert second["SESSION_TOKENS"] == second["PROMPT_TOKENS"] + second["COMPLETION_TOKENS"] - 1
        # Back to before the second turn, and the same again.
        step = np.array([[first["SESSION_TOKENS"]]], np.int32)
        again, _ = await chat(models, "What is my name?", **session, STEP=step, START=np.array([[0]], np.int32))
        assert again == text_2
        await responses(models, "chat", **session, END=np.array([[1]], np.int32))
        forgotten, _ = await chat(models, "What is my name?", **session)  # neither START nor known: begins it
        assert "Ada" not in forgotten
    play(act)


@pytest.mark.parametrize("extra", [
    {"MESSAGES": text(json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]))},
    {"PROMPT": text("Hi"), "TOOLS": text(json.dumps([{"name": "now", "parameters": {"type": "object"}}]))}])
def test_several_messages_or_tools_without_start_begin_an_unknown_session_and_leave_a_known_one(play, extra):
    async def act(models: Models) -> None:
        session = {"CORRID": np.array([[16]], np.uint64), "MAX_NEW_TOKENS": uint(4)}
        answer, first = await chat(models, **extra, **session)
        again, begun = await chat(models, **extra, **session, START=np.array([[1]], np.int32))
        assert (answer, first["PROMPT_TOKENS"]) == (again, begun["PROMPT_TOKENS"])
        with pytest.raises(SessionError, match="session 16 is under way, so it takes one new message and no new tools"):
            await chat(models, **extra, **session)
        assert (await chat(models, **extra, **session, STEP=np.array([[0]], np.int32)))[0] == again
        _, second = await chat(models, "Hello!", **session, END=np.array([[1]], np.int32))
        assert second["PROMPT_TOKENS"] > first["SESSION_TOKENS"]
    play(act)


def test_a_stop_text_that_ends_with_the_last_allowed_token_is_not_part_of_a_chats_session(play):
    async def act(models: Models) -> None:
        session = {"CORRID": np.array([[15]], np.uint64)}
        free, _ = await chat(models, "Tell me a story.", MAX_NEW_TOKENS=uint(12))
        stopped, first = await chat(models, "Tell me a story.", **session, START=np.array([[1]], np.int32),
                                    MAX_NEW_TOKENS=uint(12), STOP_WORDS=text(free[-4:]))
        assert stopped == free.partition(free[-4:])[0] and first["COMPLETION_TOKENS"] == 12
        assert first["SESSION_TOKENS"] < first["PROMPT_TOKENS"] + 12
        beyond = np.array([[first["SESSION_TOKENS"] + 1]], np.int32)
        with pytest.raises(SessionError, match=f"session 15 holds {first['SESSION_TOKENS']} tokens"):
            await chat(models, "Hello!", **session, STEP=beyond)
    play(act)


def test_chat_takes_whole_conversations_and_tools(play):
    async def act(models: Models) -> None:
        messages = [{"role": "user", "content": "My name is Ada."},
                    {"role": "assistant", "content": "Nice to meet you, Ada!"},
                    {"role": "user", "content": "What is my name?"}]
        answer, last = await chat(models, MESSAGES=text(json.dumps(messages)))
        assert "Ada" in answer and last["FINISH_REASON"] == b"stop"
        add = {"name": "add", "description": "Add two numbers.", "parameters": {"type": "object", "properties": {
            "a": {"type": "integer"}, "b": {"type": "integer"}}}}
        call, _ = await chat(models, "What is 1234 plus 4321? Use the tool.", TOOLS=text(json.dumps([add])))
        assert '"parameters": {"a": 1234, "b": 4321}' in call and "<|action_start|>" in call
    play(act)


@pytest.mark.parametrize(("tensors", "message"), [
    ({}, "there is nothing to answer"),
    ({"PROMPT": text("a"), "MESSAGES": text("[]")}, "exclude each other"),
    ({"MESSAGES": text("[1]")}, "MESSAGES is not a JSON list of objects"),
    ({"MESSAGES": text("[")}, "MESSAGES is not valid JSON"),
    ({"MESSAGES": text("[" * 200_000)}, "MESSAGES is not valid JSON: it is nested too deeply"),
    ({"MESSAGES": text(r'[{"role": "user", "content": "\ud800"}]')}, "MESSAGES is not valid JSON: it holds a lone"),
    ({"PROMPT": np.array([[b"\xff"]], object)}, "PROMPT is not valid UTF-8"),
    ({"PROMPT": text("a"), "STEP": np.array([[3]], np.int32)}, "so CORRID has to name it"),
    ({"PROMPT": text("a"), "TEMPERATURE": np.array([[-1.0]], np.float32)}, "temperature=-1.0 is out of range"),
])
def test_chat_refuses_wrong_values_in_words(play, tensors, message):
    async def act(models: Models) -> None:
        with pytest.raises(RequestError, match=message):
            await responses(models, "chat", **tensors)
    play(act)


def test_leaving_a_response_stream_frees_its_session(play):
    async def act(models: Models) -> None:
        session = {"CORRID": np.array([[9]], np.uint64)}
        stream = models["chat"].infer({"PROMPT": text("Count from 1 to 60."), **session}, InferContext())
        await anext(stream)
        await stream.aclose()
        answer, _ = await chat(models, "Hello!", **session, START=np.array([[1]], np.int32))
        assert answer
    play(act)


def test_long_texts_are_tokenised_beside_the_loop(play, monkeypatch):
    threads, encode = [], Tokenizer.encode

    def noting_encode(tokenizer: Tokenizer, *arguments: Any, **options: Any) -> list[int]:
        threads.append(threading.get_ident())
        return encode(tokenizer, *arguments, **options)

    async def act(models: Models) -> int:
        await responses(models, "preprocessing", QUERY=text(LONG_TEXT))
        await responses(models, "preprocessing", QUERY=text("hi"), BAD_WORDS_DICT=text(LONG_TEXT))
        for conversation in ({"PROMPT": text(LONG_TEXT)},
                             {"MESSAGES": text(json.dumps([{"role": "user", "content": LONG_TEXT}]))}):
            with pytest.raises(ContextLengthError):
                await responses(models, "chat", **conversation)
        return threading.get_ident()

    monkeypatch.setattr(Tokenizer, "encode", noting_encode)
    assert play(act) not in threads and threads
