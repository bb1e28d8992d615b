"""A converted workspace, unchanged, in the real Triton Inference Server, with the engine in a process beside it."""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from converter.convert import convert_checkpoint
from protocol.models import CHAT, FOLDERS, POSTPROCESSING, PREPROCESSING, TURBOMIND
from tests.backend.serving.triton_harness import ROOT, TritonServer, start_triton

pytestmark = pytest.mark.real_triton
ANSWER_TIMEOUT_S = 60.0
QUESTION = "Tell me a story about a fox and a rabbit."
GREEDY = {"runtime_top_k": ([[1]], "UINT32")}
Values = dict[str, tuple[object, str]]


@contextlib.contextmanager
def running_engine(workspace: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "backend.engine_service", str(workspace), "--address", address,
               "--cache_max_entry_count", "64"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == f"ready: internlm2 at {address}\n"
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_checkpoint("internlm2", ROOT / "demo/checkpoint", "hf",
                              tmp_path_factory.mktemp("triton") / "workspace").workspace


@pytest.fixture(scope="module")
def address(workspace: Path) -> str:
    return f"ipc://{workspace.parent / 'engine'}"


@pytest.fixture(scope="module")
def engine(workspace: Path, address: str) -> Iterator[contextlib.ExitStack]:
    """Holds the engine's process; closing it ends the process."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(running_engine(workspace, address))
        yield stack


@pytest.fixture(scope="module")
def server(workspace: Path, address: str, engine: contextlib.ExitStack) -> Iterator[TritonServer]:
    with start_triton(workspace / "model_repository", {"MILLRACE_ENGINE_ADDRESS": address}) as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def inputs(values: Values) -> list[triton.InferInput]:
    made = []
    for name, (value, data_type) in values.items():
        array = np.array(value, triton_to_np_dtype(data_type))
        made.append(triton.InferInput(name, list(array.shape), data_type))
        made[-1].set_data_from_numpy(array)
    return made


def stream(client: triton.InferenceServerClient, model: str, values: Values,
           **options: object) -> list[triton.InferResult]:
    """All responses to one request. Raises InferenceServerException."""
    answers: queue.Queue[tuple[triton.InferResult | None, Exception | None]] = queue.Queue()
    responses = []
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        client.async_stream_infer(model, inputs(values), enable_empty_final_response=True, **options)
        while True:
            result, error = answers.get(timeout=ANSWER_TIMEOUT_S)
            if error is not None:
                raise error
            if result.get_response().parameters["triton_final_response"].bool_param:
                return responses
            responses.append(result)
    finally:
        client.stop_stream(cancel_requests=True)


def turn_of_2023(client: triton.InferenceServerClient, text: str, session_id: int, step: int, **flags: int
                 ) -> tuple[str, int]:
    """One turn as LMDeploy's Chatbot did it: three models, the session as CORRID and as sequence id.

    Returns the answer and the session's tokens: what the next turn's `step` is."""
    tokens = client.infer(PREPROCESSING, inputs({"QUERY": ([[text.encode()]], "BYTES"),
                                                 "REQUEST_OUTPUT_LEN": ([[64]], "UINT32")}))
    ids, length = tokens.as_numpy("INPUT_ID"), tokens.as_numpy("REQUEST_INPUT_LEN")
    assert ids.shape == (1, length.item())
    last = stream(client, TURBOMIND, {
        "input_ids": (ids, "UINT32"), "input_lengths": (length, "UINT32"),
        "request_output_len": (tokens.as_numpy("REQUEST_OUTPUT_LEN"), "UINT32"), "step": ([[step]], "INT32"),
        "CORRID": ([[session_id]], "UINT64"), **GREEDY,
        **{name: ([[value]], "INT32") for name, value in flags.items()},
    }, sequence_id=session_id, sequence_start=bool(flags["START"]), sequence_end=bool(flags["END"]))[-1]
    begin, end = step + length.item(), last.as_numpy("sequence_length").item()
    answer = client.infer(POSTPROCESSING, inputs({
        "TOKENS_BATCH": (last.as_numpy("output_ids")[:, :, begin:], "UINT32"),
        "sequence_length": ([[end - begin]], "UINT32")}))
    assert last.as_numpy("finish_reason").item() == b"stop"
    return answer.as_numpy("OUTPUT").item().decode(), end


def chat(client: triton.InferenceServerClient, text: str, **extra: tuple[object, str]) -> str:
    responses = stream(client, CHAT, {"PROMPT": ([[text.encode()]], "BYTES"), "TEMPERATURE": ([[0.0]], "FP32"),
                                      "MAX_NEW_TOKENS": ([[64]], "UINT32"), **extra})
    assert len(responses) > 1 and responses[-1].as_numpy("FINISH_REASON").item() in (b"stop", b"length")
    return b"".join(response.as_numpy("TEXT").item() for response in responses).decode()


def user(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_the_workspace_loads_unchanged_with_all_its_models(client):
    index = client.get_model_repository_index().models
    assert {(model.name, model.state) for model in index} == {(name, "READY") for name in FOLDERS}


def test_a_conversation_of_2023_and_chat_give_the_same_answers(client):
    session = {"CORRID": ([[12]], "UINT64")}
    first, num_tokens = turn_of_2023(client, "<BOS>" + user("My name is Tom."), 11, 0, START=1, END=0)
    assert first and chat(client, "My name is Tom.", START=([[1]], "INT32"), **session) == first
    second, _ = turn_of_2023(client, "\n" + user("What is my name?"), 11, num_tokens, START=0, END=1)
    assert "Tom" in second and chat(client, "What is my name?", END=([[1]], "INT32"), **session) == second


def test_an_order_that_the_session_does_not_allow_is_refused_in_words(client):
    with pytest.raises(InferenceServerException, match="session 99 is not known"):
        stream(client, CHAT, {"PROMPT": ([[b"Hello"]], "BYTES"), "CORRID": ([[99]], "UINT64"),
                              "START": ([[0]], "INT32")})


def test_a_dead_engine_fails_requests_and_one_that_is_back_serves_them(client, engine, workspace, address):
    answer = chat(client, QUESTION)
    engine.close()
    with pytest.raises(InferenceServerException, match="the engine"):
        chat(client, QUESTION)
    engine.enter_context(running_engine(workspace, address))
    assert chat_when_connected(client, QUESTION) == answer


def chat_when_connected(client: triton.InferenceServerClient, text: str) -> str:
    """The models connect again by themselves, but not at once: ZeroMQ tries in intervals. Until then they say so."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            return chat(client, text)
        except InferenceServerException as error:
            assert "the engine" in str(error) and time.monotonic() < deadline
            time.sleep(0.1)


def test_without_an_engines_address_the_server_says_what_to_set(workspace):
    for _ in range(3):  # with all models failing at once, Triton 24.10 itself dies now and then, of a lock
        with pytest.raises(RuntimeError) as failure, start_triton(workspace / "model_repository"):
            pass
        if "boost::interprocess::lock_exception" not in str(failure.value):
            break
    assert "MILLRACE_ENGINE_ADDRESS is not set" in str(failure.value)
