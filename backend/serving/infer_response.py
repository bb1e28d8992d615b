"""Infer response: a model's arrays as a ModelInferResponse.

What does not change from one streamed response to the next (names, datatypes, shapes, id) is built once and copied:
a token then costs its bytes and one copy. Used by kserve_grpc.py, infer_stream.py and kserve_http.py."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tritonclient.grpc import service_pb2

from backend.serving.infer_request import InferCall
from backend.serving.model_config import VERSION
from backend.serving.tensors import encode

FINAL = "triton_final_response"


class ResponseEncoder:
    """Encodes the responses to one request: its outputs, in the model's order."""

    def __init__(self, call: InferCall):
        self._spec = call.model.spec
        self._id = call.context.request_id
        self._outputs = [tensor for tensor in self._spec.outputs.values()
                         if not call.output_names or tensor.name in call.output_names]
        self._layout: list[tuple[str, tuple[int, ...]]] | None = None
        self._unary = service_pb2.ModelInferResponse()
        self._streamed = service_pb2.ModelStreamInferResponse()

    def unary(self, outputs: Mapping[str, np.ndarray]) -> service_pb2.ModelInferResponse:
        """The response to ModelInfer. Raises TypeError or ValueError where the outputs are not as declared."""
        raw = self._encode(outputs)
        response = service_pb2.ModelInferResponse()
        response.CopyFrom(self._unary)
        response.raw_output_contents.extend(raw)
        return response

    def streamed(self, outputs: Mapping[str, np.ndarray], is_final: bool) -> service_pb2.ModelStreamInferResponse:
        """One response of a stream. Raises as `unary`."""
        raw = self._encode(outputs)
        response = service_pb2.ModelStreamInferResponse()
        response.CopyFrom(self._streamed)
        response.infer_response.raw_output_contents.extend(raw)
        if is_final:
            response.infer_response.parameters[FINAL].bool_param = True
        return response

    def empty_final(self) -> service_pb2.ModelStreamInferResponse:
        """What closes a decoupled answer on request: no version and no outputs, as Triton sends it."""
        response = service_pb2.ModelStreamInferResponse()
        response.infer_response.model_name = self._spec.name
        response.infer_response.id = self._id
        response.infer_response.parameters[FINAL].bool_param = True
        return response

    def _encode(self, outputs: Mapping[str, np.ndarray]) -> list[bytes]:
        raw, layout = [], []
        for tensor in self._outputs:
            array = outputs.get(tensor.name)
            if array is not None:
                raw.append(encode(tensor, array))
                layout.append((tensor.name, array.shape))
        if layout != self._layout:
            self._build(outputs, layout)
        return raw

    def _build(self, outputs: Mapping[str, np.ndarray], layout: list[tuple[str, tuple[int, ...]]]) -> None:
        undeclared = outputs.keys() - self._spec.outputs.keys()
        if undeclared:
            raise ValueError(f"model '{self._spec.name}' gave outputs that it does not declare: {sorted(undeclared)}")
        response = service_pb2.ModelInferResponse(model_name=self._spec.name, model_version=VERSION, id=self._id)
        for name, shape in layout:
            declared = self._spec.outputs[name]
            if not declared.accepts(shape):
                raise ValueError(f"output '{name}' has shape {list(shape)}, but is declared {list(declared.shape)}")
            response.outputs.add(name=name, datatype=declared.datatype, shape=shape)
        self._unary = response
        self._streamed = service_pb2.ModelStreamInferResponse(infer_response=response)
        self._streamed.infer_response.parameters[FINAL].bool_param = False
        self._layout = layout


def refusal(request_id: str, message: str) -> service_pb2.ModelStreamInferResponse:
    """A stream's answer to a request that did not reach its model."""
    response = service_pb2.ModelStreamInferResponse(error_message=message)
    response.infer_response.id = request_id
    return response


def failure(model_name: str, request_id: str, message: str) -> service_pb2.ModelStreamInferResponse:
    """A stream's answer to a request that failed in its model; it is the request's last."""
    response = refusal(request_id, message)
    response.infer_response.model_name = model_name
    response.infer_response.parameters[FINAL].bool_param = True
    return response
