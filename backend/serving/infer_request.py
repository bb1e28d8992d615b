"""Infer request: a ModelInferRequest, checked against its model, as what the model takes.

The checks and their texts follow Triton Inference Server's, in its order: model, parameters, outputs, contents, then
the inputs against the configuration. Used by kserve_grpc.py, infer_stream.py and kserve_http.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2

from backend.serving.model_config import ModelSpec
from backend.serving.model_repository import LoadedModel, ModelRepository
from backend.serving.protocol_error import ProtocolError
from backend.serving.served_model import InferContext
from backend.serving.tensors import DTYPES, TensorSpec, decode_raw, decode_typed

_EMPTY_FINAL = "triton_enable_empty_final_response"
# A shape that numpy could not hold is refused before any arithmetic with it.
_MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request that its model can take.

    output_names       those that the caller wants; empty: all
    wants_empty_final  close a decoupled answer with an empty response"""

    model: LoadedModel
    inputs: dict[str, np.ndarray]
    context: InferContext
    output_names: frozenset[str]
    wants_empty_final: bool


def check_request(repository: ModelRepository, request: service_pb2.ModelInferRequest) -> InferCall:
    """Raises ProtocolError NOT_FOUND, INVALID_ARGUMENT or UNIMPLEMENTED, with the text of the real server."""
    model = repository.find(request.model_name, request.model_version)
    timeout_s, wants_empty_final = _check_parameters(request.parameters)
    _check_outputs(model.spec, request.outputs)
    prefix = f"[request id: {request.id or '<id_unknown>'}] "
    return InferCall(
        model=model,
        inputs=_decode_inputs(model.spec, request, prefix),
        context=InferContext(request_id=request.id, timeout_s=timeout_s),
        output_names=frozenset(output.name for output in request.outputs),
        wants_empty_final=wants_empty_final,
    )


def _check_parameters(parameters) -> tuple[float | None, bool]:
    """(timeout in seconds or None, whether an empty final response is wanted)."""
    timeout_s, wants_empty_final = None, False
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if key == "sequence_id":
            _expect(key, kind, "int64_param or string_param", "int64_param", "string_param")
            if kind == "string_param" and len(parameter.string_param) > 128:
                raise ProtocolError("UNIMPLEMENTED", "string correlation ID cannot be longer than 128 characters")
        elif key in ("sequence_start", "sequence_end"):
            _expect(key, kind, "bool_param", "bool_param")
        elif key == "priority":
            _expect(key, kind, "int64_param or uint64_param", "int64_param", "uint64_param")
            if kind == "int64_param" and parameter.int64_param < 0:
                raise _invalid("invalid value for 'priority', expected value >= 0.")
        elif key == "timeout":
            _expect(key, kind, "int64_param", "int64_param")
            if parameter.int64_param > 0:  # the real server reads a negative one as 2^64 minus it: no limit
                timeout_s = parameter.int64_param / 1e6
        elif key == _EMPTY_FINAL:
            _expect(key, kind, "bool_param", "bool_param")
            wants_empty_final = parameter.bool_param
        elif key.startswith("triton_"):
            raise _invalid("parameter keys starting with 'triton_' are reserved for Triton usage. Only the following "
                           f"keys starting with 'triton_' are allowed: {_EMPTY_FINAL}")
        else:
            _expect(key, kind, "int64_param, bool_param, or string_param",
                    "int64_param", "bool_param", "string_param", "double_param")
    return timeout_s, wants_empty_final


def _expect(key: str, kind: str | None, words: str, *allowed: str) -> None:
    if kind not in allowed:
        raise _invalid(f"invalid value type for '{key}' parameter, expected {words}.")


def _check_outputs(spec: ModelSpec, outputs) -> None:
    for output in outputs:
        if output.name not in spec.outputs:
            raise _invalid(f"unexpected inference output '{output.name}' for model '{spec.name}'")
        if "classification" in output.parameters:
            raise ProtocolError("UNIMPLEMENTED", f"classification of output '{output.name}' is not supported")
        _refuse_shared_memory(output)


def _decode_inputs(spec: ModelSpec, request: service_pb2.ModelInferRequest, prefix: str) -> dict[str, np.ndarray]:
    is_raw = len(request.raw_input_contents) > 0
    seen: set[str] = set()
    for number, tensor in enumerate(request.inputs):
        if tensor.name in seen:
            raise _invalid(f"{prefix}input '{tensor.name}' already exists in request")
        seen.add(tensor.name)
        _refuse_shared_memory(tensor)
        if is_raw and tensor.HasField("contents"):
            raise _invalid(f"contents field must not be specified when using raw_input_contents for '{tensor.name}' "
                           f"for model '{spec.name}'")
        if is_raw and number >= len(request.raw_input_contents):
            raise _invalid(f"unable to find data for input tensor '{tensor.name}' for model '{spec.name}' in request.")
        if not is_raw:
            _check_contents(spec, tensor)
    _check_names(spec, [tensor.name for tensor in request.inputs], prefix)
    _check_batch(spec, request.inputs, prefix)
    inputs = {}
    for number, tensor in enumerate(request.inputs):
        declared = spec.inputs[tensor.name]
        shape = tuple(tensor.shape)
        _check_tensor(spec, declared, tensor.datatype, shape, prefix)
        if is_raw:
            array = decode_raw(declared, shape, request.raw_input_contents[number], spec.name, prefix)
        else:
            values = getattr(tensor.contents, declared.contents_field) if declared.contents_field else ()
            array = decode_typed(declared, shape, values, spec.name, prefix)
        inputs[tensor.name] = declared.for_model(array)
    return inputs


def _check_contents(spec: ModelSpec, tensor) -> None:
    """Typed contents have to be there, in the one field of the tensor's own datatype."""
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if not filled and not (tensor.HasField("contents") and 0 in tensor.shape):
        raise _invalid(f"unable to find data for input tensor '{tensor.name}' for model '{spec.name}' in request.")
    declared = spec.inputs.get(tensor.name)
    for field in filled:
        if declared is not None and tensor.datatype == declared.datatype and field != declared.contents_field:
            raise _invalid(f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{spec.name}' "
                           f"of type '{_datatypes_of(field)}', expected datatype '{declared.datatype}'")


def _check_names(spec: ModelSpec, names: Sequence[str], prefix: str) -> None:
    required = [tensor.name for tensor in spec.inputs.values() if not tensor.is_optional]
    missing = [name for name in required if name not in names]
    if missing:
        most = len(spec.inputs)
        expected = str(most) if len(required) == most else f"between {len(required)} and {most}"
        raise _invalid(f"{prefix}expected number of inputs {expected} but got {len(names)} inputs for model "
                       f"'{spec.name}'. Got input(s) {_quoted(names)}, but missing required input(s) "
                       f"{_quoted(missing)}. Please provide all required input(s).")
    for name in names:
        if name not in spec.inputs:
            raise _invalid(f"unexpected inference input '{name}' for model '{spec.name}'")


def _check_batch(spec: ModelSpec, tensors, prefix: str) -> None:
    if not spec.max_batch_size or not tensors:
        return
    batch_size = tensors[0].shape[0] if tensors[0].shape else None
    for tensor in tensors:
        if not tensor.shape:
            raise _invalid(f"{prefix}input '{tensor.name}' has no shape but model requires batch dimension for "
                           f"'{spec.name}'")
        if tensor.shape[0] != batch_size:
            raise _invalid(f"{prefix}input '{tensor.name}' batch size does not match other inputs for '{spec.name}'")
    if batch_size > spec.max_batch_size:
        raise _invalid(f"{prefix}inference request batch-size must be <= {spec.max_batch_size} for '{spec.name}'")
    if batch_size == 0:
        raise _invalid(f"{prefix}inference request batch-size must be >= 1 for '{spec.name}'")


def _check_tensor(spec: ModelSpec, declared: TensorSpec, datatype: str, shape: tuple[int, ...], prefix: str) -> None:
    if datatype != declared.datatype:
        shown = datatype if datatype in DTYPES else "<invalid>"
        raise _invalid(f"{prefix}inference input '{declared.name}' data-type is '{shown}', but model '{spec.name}' "
                       f"expects '{declared.datatype}'")
    if any(size < 0 for size in shape):
        raise _invalid(f"{prefix}All input dimensions should be specified for input '{declared.name}' for model "
                       f"'{spec.name}', got {_dims(shape)}")
    if not declared.accepts(shape):
        raise _invalid(f"{prefix}unexpected shape for input '{declared.name}' for model '{spec.name}'. Expected "
                       f"{_dims(declared.shape)}, got {_dims(shape)}.")
    if math.prod(shape) > _MAX_ELEMENTS or any(size > _MAX_ELEMENTS for size in shape):
        raise _invalid(f"{prefix}input '{declared.name}' for model '{spec.name}' has shape {_dims(shape)}, more than "
                       f"{_MAX_ELEMENTS} elements")


def _refuse_shared_memory(tensor) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise ProtocolError("UNIMPLEMENTED", f"tensor '{tensor.name}' is in shared memory, which this server does not "
                            "support; send its contents in the request")


def _datatypes_of(field: str) -> str:
    """The datatype that a field of InferTensorContents stands for; the widest where it stands for several."""
    return {"bool_contents": "BOOL", "int_contents": "INT32", "int64_contents": "INT64", "uint_contents": "UINT32",
            "uint64_contents": "UINT64", "fp32_contents": "FP32", "fp64_contents": "FP64",
            "bytes_contents": "BYTES"}[field]


def _quoted(names: Sequence[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _dims(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _invalid(text: str) -> ProtocolError:
    return ProtocolError("INVALID_ARGUMENT", text)
