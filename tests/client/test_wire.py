"""The tensors that the client writes and reads are those of config.pbtxt."""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from client.wire import INPUTS, Sampling, sampling_inputs
from tests.client.fake_server import MODELS

CONFIG = text_format.Parse((MODELS / "chat" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def datatype(tensor):
    return model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")


def test_each_input_has_the_name_and_type_of_the_model_configuration():
    declared = {tensor.name: datatype(tensor) for tensor in CONFIG.input}
    assert declared.pop("TOOLS") == "BYTES"  # the one input that this client does not send
    assert declared == INPUTS


def test_each_sampling_option_is_an_input_of_the_model():
    inputs = sampling_inputs(dict.fromkeys(Sampling.__annotations__, 1))
    assert inputs.keys() == INPUTS.keys() - {"PROMPT", "MESSAGES", "CORRID", "START", "END", "STOP", "STEP"}


def test_each_output_that_is_read_has_the_type_it_is_read_as():
    texts = ("TEXT", "FINISH_REASON")
    numbers = ("PROMPT_TOKENS", "CACHED_TOKENS", "COMPLETION_TOKENS", "SESSION_TOKENS")
    assert {tensor.name: datatype(tensor) for tensor in CONFIG.output} == {
        **dict.fromkeys(texts, "BYTES"), **dict.fromkeys(numbers, "UINT32")}
