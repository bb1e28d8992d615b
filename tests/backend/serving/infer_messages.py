"""Messages that the protocol's tests send: right ones, to be bent by each test."""

from __future__ import annotations

import struct
from typing import Any

from tritonclient.grpc import service_pb2

Request = service_pb2.ModelInferRequest


def strings(*texts: bytes) -> bytes:
    """Raw contents of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def request(model: str, *tensors: tuple[str, str, list[int], bytes], request_id: str = "",
            **parameters: Any) -> Request:
    """Tensors as (name, datatype, shape, raw contents); parameters by the type of their value."""
    message = Request(model_name=model, id=request_id)
    for name, datatype, shape, raw in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    for key, value in parameters.items():
        set_parameter(message, key, value)
    return message


def set_parameter(message: Request, key: str, value: Any) -> None:
    kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
    setattr(message.parameters[key], kind, value)


def text(*texts: bytes) -> tuple[str, str, list[int], bytes]:
    """The input of `echo`."""
    return ("TEXT", "BYTES", [len(texts)], strings(*texts))


def number(value: int = 5) -> tuple[str, str, list[int], bytes]:
    return ("N", "INT32", [1], struct.pack("<i", value))


def stream_request(count: int, request_id: str = "u", pause_s: float = 0.0, error: bytes = b"",
                   empty_final: bool = True, **parameters: Any) -> Request:
    """A request to `decoupled`."""
    tensors = [("PROMPT", "BYTES", [1], strings(b"x")), ("MAX_TOKENS", "INT32", [1], struct.pack("<i", count))]
    if pause_s:
        tensors.append(("PAUSE_S", "FP32", [1], struct.pack("<f", pause_s)))
    if error:
        tensors.append(("ERROR", "BYTES", [1], strings(error)))
    if empty_final:
        parameters["triton_enable_empty_final_response"] = True
    return request("decoupled", *tensors, request_id=request_id, **parameters)


def slow_request(pause_s: float, **parameters: Any) -> Request:
    return request("slow", ("PAUSE_S", "FP32", [1], struct.pack("<f", pause_s)), **parameters)


def fail_request(error: str) -> Request:
    return request("fail", ("ERROR", "BYTES", [1], strings(error.encode())))


def shown(response: service_pb2.ModelStreamInferResponse) -> str:
    """A stream's response in a word: `t0`, `error: TEXT` or `end`, each with `!` where it is final."""
    inner = response.infer_response
    is_final = inner.parameters["triton_final_response"].bool_param
    if response.error_message:
        word = f"error: {response.error_message}"
    elif inner.outputs:
        word = inner.raw_output_contents[0][4:].decode()
    else:
        word = "end"
    return word + "!" * is_final
