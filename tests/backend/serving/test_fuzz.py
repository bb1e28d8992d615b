"""Any ModelInferRequest at all is answered: by a response of its model or by an error with a status, never a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backend.serving.infer_request import check_request
from backend.serving.infer_response import ResponseEncoder
from backend.serving.inference import Inference, only_response
from backend.serving.model_repository import ModelRepository
from backend.serving.protocol_error import ProtocolError, wire_status
from tests.backend.serving.bad_requests import CASES
from tests.backend.serving.embedded_harness import write_configs
from tests.backend.serving.infer_messages import Request
from tests.backend.serving.stub_models import CONFIGS, models

NUM_CASES = 5000
STATUSES = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}
SPECS = {"echo": ["TEXT", "N", "TEMP"], "batched": ["IDS", "SEED", "IS_SET", "SMALL", "HALF"]}
DATATYPES = ["BYTES", "INT32", "FP32", "UINT32", "UINT64", "BOOL", "INT8", "FP16", "FP64", "BF16", "", "nonsense"]
FIELDS = {"bool_contents": st.booleans(), "int_contents": st.integers(-2**31, 2**31 - 1),
          "int64_contents": st.integers(-2**63, 2**63 - 1), "uint_contents": st.integers(0, 2**32 - 1),
          "uint64_contents": st.integers(0, 2**64 - 1), "fp32_contents": st.floats(width=32),
          "fp64_contents": st.floats(), "bytes_contents": st.binary(max_size=9)}
SIZES = st.one_of(st.integers(0, 3), st.sampled_from([-1, -2**63, 2**31, 2**62, 2**63 - 1]))
KEYS = st.sampled_from(["timeout", "priority", "sequence_id", "sequence_start", "triton_x", "a",
                        "triton_enable_empty_final_response", "shared_memory_region"])


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Nearly right requests, since those get furthest: right names and types with wrong everything else."""
    model = draw(st.sampled_from([*SPECS, *SPECS, "decoupled", "nope"]))
    message = Request(model_name=model, model_version=draw(st.sampled_from(["", "", "", "1", "0", "x", "-1"])),
                      id=draw(st.sampled_from(["", "id", "x" * 200])))
    is_raw = draw(st.booleans())
    names = st.sampled_from([*SPECS.get(model, ["PROMPT", "MAX_TOKENS"])] * 3 + ["BOGUS"])
    for name in draw(st.lists(names, max_size=4)):
        tensor = message.inputs.add(name=name, datatype=draw(st.sampled_from(DATATYPES)),
                                    shape=draw(st.lists(SIZES, max_size=4)))
        if is_raw:
            message.raw_input_contents.append(draw(st.binary(max_size=20)))
        else:
            field = draw(st.sampled_from([*FIELDS]))
            getattr(tensor.contents, field).extend(draw(st.lists(FIELDS[field], max_size=4)))
    for name in draw(st.lists(st.sampled_from([*SPECS.get(model, []), "NOPE"]), max_size=2)):
        message.outputs.add(name=name)
    for key in draw(st.lists(KEYS, max_size=1)):
        value = draw(st.one_of(st.booleans(), st.integers(-2**63, 2**63 - 1), st.text(max_size=3), st.floats()))
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(message.parameters[key], kind, value)
    return message


@st.composite
def mutated(draw: st.DrawFn) -> Request | None:
    """The bytes of a known request, some of them changed; None where they are no message any more."""
    data = bytearray(draw(st.sampled_from([message for message, _, _ in CASES.values()])).SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    try:
        return Request.FromString(bytes(data))
    except DecodeError:
        return None


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> ModelRepository:
    folder: Path = write_configs(tmp_path_factory.mktemp("fuzz"), CONFIGS)
    return ModelRepository({name: model for name, model in models().items() if name != "slow"}, folder)


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


async def answer(repository: ModelRepository, message: Request):
    """As ModelInfer does it, for models that are not decoupled."""
    call = check_request(repository, message)
    async with Inference("test").answering(call) as responses:
        return ResponseEncoder(call).unary(await only_response(responses))


@given(message=st.one_of(requests(), mutated()))
@example(message=Request(model_name="echo", id="two\nlines"))
@example(message=Request(model_name="echo", model_version="\n"))
@example(message=Request(model_name="e\ncho"))
@settings(max_examples=NUM_CASES, deadline=None, database=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_request_gets_a_response_or_an_error_with_a_status(repository, loop, message):
    if message is None or message.model_name in ("decoupled", "fail"):
        return
    try:
        response = loop.run_until_complete(answer(repository, message))
    except ProtocolError as error:
        assert wire_status(error)[0] in STATUSES, error
        assert str(error) and "\n" not in str(error)
    else:
        assert response.model_name == message.model_name
        assert len(response.outputs) == len(response.raw_output_contents)
