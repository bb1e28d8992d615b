"""Wire: the tensors of the served model `chat`, as KServe v2 requests and responses (Triton Inference Server's gRPC).

Pure functions, no connection. Types are those of workspace_template/triton_models/chat/config.pbtxt; a test compares.
Used by connection.py and the sessions."""

from __future__ import annotations

import difflib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from tritonclient.grpc import service_pb2

from client.errors import RequestRefusedError
from protocol.models import CHAT
from protocol.status import StatusCode

INPUTS = {
    "PROMPT": "BYTES", "MESSAGES": "BYTES", "CORRID": "UINT64",
    "START": "INT32", "END": "INT32", "STOP": "INT32", "STEP": "INT32",
    "MAX_NEW_TOKENS": "UINT32", "MIN_NEW_TOKENS": "UINT32", "TEMPERATURE": "FP32", "TOP_K": "UINT32", "TOP_P": "FP32",
    "MIN_P": "FP32", "REPETITION_PENALTY": "FP32", "PRESENCE_PENALTY": "FP32", "FREQUENCY_PENALTY": "FP32",
    "SEED": "UINT64", "STOP_WORDS": "BYTES", "BAD_WORDS": "BYTES", "IGNORE_EOS": "BOOL", "SKIP_SPECIAL_TOKENS": "BOOL",
}
_FORMATS = {"UINT64": "<Q", "INT32": "<i", "UINT32": "<I", "FP32": "<f", "BOOL": "<?"}


class Sampling(TypedDict, total=False):
    """How an answer is chosen. What is absent, or None, is the server's default.

    max_new_tokens, min_new_tokens     tokens
    temperature                        0 is greedy
    top_k, top_p, min_p                0, 1 and 0 keep all tokens
    repetition_penalty                 multiplicative, in 0.01..100; presence and frequency are added
    seed                               0..2^64-1; equal seeds give equal answers
    stop, bad_words                    texts that end the answer; texts that never appear
    ignore_eos, skip_special_tokens    go on past the model's own end; leave special tokens out of the text"""

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: Sequence[str]
    bad_words: Sequence[str]
    ignore_eos: bool | None
    skip_special_tokens: bool | None


@dataclass(frozen=True, slots=True)
class Increment:
    """What one response adds to an answer.

    text                   new text, final: it will not be taken back
    finish_reason          None until the last; then stop, length or abort (cancelled)
    num_prompt_tokens      the session's history included; num_cached_tokens of them needed no computing
    num_completion_tokens  generated so far
    num_session_tokens     what the server's session holds after this response
    Over HTTP the counts come with the last increment; before it they are 0, and num_completion_tokens counts parts."""

    text: str
    finish_reason: str | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    num_session_tokens: int

    @property
    def status(self) -> StatusCode:
        """STREAM_END with the last increment, STREAM_ING before."""
        return StatusCode.STREAM_ING if self.finish_reason is None else StatusCode.STREAM_END


def sampling_inputs(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling by tensor name. Raises TypeError for a name that Sampling does not have."""
    inputs = {}
    for name, value in sampling.items():
        if name not in Sampling.__annotations__:
            nearest = difflib.get_close_matches(name, Sampling.__annotations__, n=1)
            raise TypeError(f"unknown option {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))
        if value is not None and value not in ((), []):
            inputs["STOP_WORDS" if name == "stop" else name.upper()] = value
    return inputs


def encode_request(inputs: Mapping[str, Any], timeout_s: float | None = None) -> service_pb2.ModelInferRequest:
    """The request to `chat` with these tensors: a text or number each, or a sequence of texts.

    timeout_s  by when the server gives up; None: never
    Raises RequestRefusedError for a value that its type on the wire cannot hold."""
    request = service_pb2.ModelInferRequest(model_name=CHAT)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    if timeout_s is not None:
        request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
    for name, value in inputs.items():
        elements = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        request.inputs.add(name=name, datatype=INPUTS[name], shape=[1, len(elements)])
        request.raw_input_contents.append(b"".join(_encode(name, element) for element in elements))
    return request


def decode_response(response: service_pb2.ModelInferResponse) -> Increment | None:
    """What a response says; None for the empty one that closes a stream."""
    if not response.outputs:
        return None
    raw = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
    numbers = (int.from_bytes(raw[name], "little") for name in
               ("PROMPT_TOKENS", "CACHED_TOKENS", "COMPLETION_TOKENS", "SESSION_TOKENS"))
    # A BYTES element is its length in four bytes and then itself.
    return Increment(raw["TEXT"][4:].decode(), raw["FINISH_REASON"][4:].decode() or None, *numbers)


def _encode(name: str, value: Any) -> bytes:
    kind = INPUTS[name]
    try:
        if kind == "BYTES":
            data = value.encode()
            return struct.pack("<I", len(data)) + data
        return struct.pack(_FORMATS[kind], value)
    except (struct.error, OverflowError, AttributeError, UnicodeEncodeError) as error:
        raise RequestRefusedError(f"{name.lower()}={value!r} cannot be sent as {kind}: {error}") from error
