"""Generate: Triton's generate extension, in which a request's JSON names inputs directly and a response is flat.

A key that is an input becomes that tensor, any other a parameter; a nested object is read as if its keys stood outside.
A value that is no list is a tensor of one element. Used by kserve_http.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2

from backend.serving.http_tensors import json_to_raw, raw_to_json, set_parameters
from backend.serving.model_config import ModelSpec
from backend.serving.protocol_error import ProtocolError


def read_generate(document: Mapping[str, Any], spec: ModelSpec, version: str) -> service_pb2.ModelInferRequest:
    """Raises ProtocolError INVALID_ARGUMENT."""
    request = service_pb2.ModelInferRequest(model_name=spec.name, model_version=version)
    parameters: dict[str, Any] = {}
    for key, value in _unnested(document):
        declared = spec.inputs.get(key)
        if declared is not None:
            request.raw_input_contents.append(json_to_raw(key, declared.datatype, value))
            request.inputs.add(name=key, datatype=declared.datatype, shape=_shape(key, value, spec))
        elif key == "id" and isinstance(value, str):
            request.id = value
        else:
            parameters[key] = value
    set_parameters(request.parameters, parameters)
    return request


def write_generate(spec: ModelSpec, response: service_pb2.ModelInferResponse) -> dict[str, Any]:
    """Outputs by name: the value itself where there is one, otherwise a flat list."""
    document: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        document["id"] = response.id
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = raw_to_json(spec, output, raw)
        document[output.name] = values[0] if len(values) == 1 else values
    return document


def _unnested(document: Mapping[str, Any]):
    for key, value in document.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield key, value


def _shape(key: str, value: Any, spec: ModelSpec) -> list[int]:
    shape: list[int] = []
    rows = [value]
    while rows and isinstance(rows[0], list):
        shape.append(len(rows[0]))
        if not all(isinstance(row, list) and len(row) == shape[-1] for row in rows):
            break
        rows = [value for row in rows for value in row]
    if any(isinstance(row, list) for row in rows):
        raise ProtocolError("INVALID_ARGUMENT", f"rows of input '{key}' have different lengths")
    return [*([1] if spec.max_batch_size else []), *(shape or [1])]
