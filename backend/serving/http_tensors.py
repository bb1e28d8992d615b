"""HTTP tensors: KServe's JSON requests and responses, with tensors as JSON lists or as bytes behind the JSON.

Both become the messages of the gRPC protocol, so that one set of checks serves both. The binary form is Triton's
`binary_tensor_data` extension. Used by kserve_http.py and generate.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from backend.serving.model_config import ModelSpec
from backend.serving.protocol_error import ProtocolError
from backend.serving.tensors import DTYPES, decode_raw, encode_strings
from backend.text.strict_json import parse_json

HEADER_LENGTH = "Inference-Header-Content-Length"


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises ProtocolError INVALID_ARGUMENT."""
    try:
        document = parse_json(body)
    except ValueError as error:
        raise _invalid(f"failed to parse the request JSON buffer: {error}") from None
    if not isinstance(document, dict):
        raise _invalid("failed to parse the request JSON buffer: it is not an object")
    return document


def read_request(body: bytes, header_length: str | None, model: str, version: str) -> service_pb2.ModelInferRequest:
    """An infer request's body; `header_length` is the header of that name, the length of the JSON part.

    Raises ProtocolError INVALID_ARGUMENT."""
    if header_length is None:
        json_length = len(body)
    elif header_length.isascii() and header_length.isdigit() and int(header_length) <= len(body):
        json_length = int(header_length)
    else:
        raise _invalid(f"{HEADER_LENGTH} is '{header_length}', but the body has {len(body)} bytes")
    document = read_json(body[:json_length])
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=_get(document, "id", str, ""))
    set_parameters(request.parameters, _get(document, "parameters", dict, {}))
    offset = json_length
    for tensor in _objects(document, "inputs"):
        name, datatype = _get(tensor, "name", str), _get(tensor, "datatype", str)
        message = request.inputs.add(name=name, datatype=datatype, shape=_shape(tensor, name))
        parameters = dict(_get(tensor, "parameters", dict, {}))
        size = parameters.pop("binary_data_size", None)
        set_parameters(message.parameters, parameters)
        if size is None:
            request.raw_input_contents.append(json_to_raw(name, datatype, tensor.get("data")))
        elif isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(body) - offset:
            raise _invalid(f"binary_data_size of input '{name}' is {size}, but {len(body) - offset} bytes are left")
        else:
            request.raw_input_contents.append(body[offset:offset + size])
            offset += size
    if offset != len(body):
        raise _invalid(f"unexpected additional input data: {len(body) - offset} bytes behind the last input")
    for tensor in _objects(document, "outputs"):
        message = request.outputs.add(name=_get(tensor, "name", str))
        set_parameters(message.parameters, _get(tensor, "parameters", dict, {}))
    return request


def write_response(spec: ModelSpec, request: service_pb2.ModelInferRequest,
                   response: service_pb2.ModelInferResponse) -> tuple[bytes, int | None]:
    """(body, length of its JSON part, or None where the body is JSON alone)."""
    all_binary = request.parameters["binary_data_output"].bool_param
    is_binary = {output.name: output.parameters["binary_data"].bool_param if "binary_data" in output.parameters
                 else all_binary for output in request.outputs}
    outputs, binary = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        shown: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if is_binary.get(output.name, all_binary):
            shown["parameters"] = {"binary_data_size": len(raw)}
            binary.append(raw)
        else:
            shown["data"] = raw_to_json(spec, output, raw)
        outputs.append(shown)
    document = {"model_name": response.model_name, "model_version": response.model_version, "outputs": outputs}
    if response.id:
        document = {"id": response.id, **document}
    header = json.dumps(document, ensure_ascii=False).encode()
    return header + b"".join(binary), len(header) if binary else None


def json_to_raw(name: str, datatype: str, data: Any) -> bytes:
    """A JSON list, flat or nested, as raw contents; of a datatype that does not exist: nothing, which is found later.

    Raises ProtocolError INVALID_ARGUMENT for missing data and for values that the datatype has not."""
    if data is None:
        raise _invalid(f"unable to find data for input tensor '{name}' in request.")
    values = list(_flatten(data))
    if datatype == "BYTES":
        if not all(isinstance(value, str) for value in values):
            raise _invalid(f"data of input '{name}' has to be strings, since its datatype is BYTES")
        return encode_strings([value.encode() for value in values])
    dtype = DTYPES.get(datatype)
    if dtype is None:
        return b""
    kinds = (bool,) if dtype.kind == "b" else (int,) if dtype.kind in "iu" else (int, float)
    if not all(isinstance(value, kinds) and (isinstance(value, bool) == (dtype.kind == "b")) for value in values):
        raise _invalid(f"data of input '{name}' holds a value that is no {datatype}")
    try:
        return np.array(values, dtype).tobytes()
    except OverflowError:
        raise _invalid(f"data of input '{name}' holds a value that does not fit {datatype}") from None


def raw_to_json(spec: ModelSpec, output: Any, raw: bytes) -> list[Any]:
    """An output's raw contents as a flat JSON list; bytes that are no UTF-8 are replaced."""
    array = decode_raw(spec.outputs[output.name], tuple(output.shape), raw, spec.name, "")
    if output.datatype == "BYTES":
        return [text.decode(errors="replace") for text in array.flat]
    return array.ravel().tolist()


def set_parameters(parameters: Any, values: Mapping[str, Any]) -> None:
    """JSON values as the protocol's parameters. Raises ProtocolError INVALID_ARGUMENT."""
    for key, value in values.items():
        if isinstance(value, bool):
            parameters[key].bool_param = value
        elif isinstance(value, int) and -2**63 <= value < 2**63:
            parameters[key].int64_param = value
        elif isinstance(value, float):
            parameters[key].double_param = value
        elif isinstance(value, str):
            parameters[key].string_param = value
        else:
            raise _invalid(f"parameter '{key}' has to be a boolean, a 64-bit integer, a number or a string")


def _flatten(data: Any) -> Iterator[Any]:
    stack = [iter([data])]  # not recursive: nesting is the caller's to choose
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def _get(document: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = document.get(key, default)
    if not isinstance(value, kind):
        raise _invalid(f"'{key}' is missing or is not {kind.__name__} in the request's JSON")
    return value


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    objects = _get(document, key, list, [])
    if not all(isinstance(item, dict) for item in objects):
        raise _invalid(f"'{key}' has to be a list of objects in the request's JSON")
    return objects


def _shape(tensor: Mapping[str, Any], name: str) -> list[int]:
    shape = _get(tensor, "shape", list)
    if not all(isinstance(size, int) and not isinstance(size, bool) and -2**63 <= size < 2**63 for size in shape):
        raise _invalid(f"shape of input '{name}' has to be a list of integers")
    return shape


def _invalid(text: str) -> ProtocolError:
    return ProtocolError("INVALID_ARGUMENT", text)
