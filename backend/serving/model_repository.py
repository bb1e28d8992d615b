"""Model repository: the models that a server offers, each with its declaration and its counts.

Owns the lookup by name and version, and what the control plane tells. Used by infer_request.py and both servers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path

from tritonclient.grpc import service_pb2

from backend.errors import WorkspaceError
from backend.serving.model_config import CONFIG_FILE, VERSION, ModelSpec, read_model_config
from backend.serving.model_statistics import ModelStatistics
from backend.serving.protocol_error import ProtocolError
from backend.serving.served_model import ServedModel

SERVER_NAME = "millrace"
EXTENSIONS = ("model_repository", "model_configuration", "binary_tensor_data", "parameters", "statistics", "generate")
LOAD_REFUSAL = "explicit model load / unload is not allowed if polling is enabled"  # as Triton's default mode says it
SHARED_MEMORY_REFUSAL = "shared memory is not supported by this server; send tensors in the request"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A served model, what it declares and what it has done."""

    spec: ModelSpec
    served: ServedModel
    statistics: ModelStatistics


class ModelRepository:
    """The models of one server process; fixed from construction on.

    models    by name
    folder    holds a folder with a config.pbtxt for each of them, under any folder name
    is_ready  whether requests can be answered now, asked at each health check
    Raises WorkspaceError where a model has no configuration."""

    def __init__(self, models: Mapping[str, ServedModel], folder: Path, is_ready: Callable[[], bool] = lambda: True):
        specs = {spec.name: spec for spec in map(read_model_config, sorted(folder.glob(f"*/{CONFIG_FILE}")))}
        missing = sorted(models.keys() - specs.keys())
        if missing:
            raise WorkspaceError(f"{folder} has no {CONFIG_FILE} for {', '.join(missing)}; convert again")
        self.is_ready = is_ready
        self._models = {name: LoadedModel(specs[name], served, ModelStatistics(name))
                        for name, served in models.items()}

    def find(self, name: str, version: str = "") -> LoadedModel:
        """The model of a name; an empty version is the newest.

        Raises ProtocolError NOT_FOUND, or INVALID_ARGUMENT where the version is no number."""
        model = self._models.get(name)
        if version not in ("", VERSION):
            number = _version_number(version)
            if model is not None and str(number) != VERSION:
                raise ProtocolError("NOT_FOUND", f"Request for unknown model: '{name}' version {number} is not found")
        if model is None:
            raise ProtocolError("NOT_FOUND", f"Request for unknown model: '{name}' is not found")
        return model

    def is_model_ready(self, name: str, version: str) -> bool:
        """False for an unknown one. Raises ProtocolError INVALID_ARGUMENT where the version is no number."""
        try:
            self.find(name, version)
        except ProtocolError as error:
            if error.status != "NOT_FOUND":
                raise
            return False
        return self.is_ready()

    def server_metadata(self) -> service_pb2.ServerMetadataResponse:
        """Who answers, and with which parts of the protocol."""
        return service_pb2.ServerMetadataResponse(name=SERVER_NAME, version=package_version(SERVER_NAME),
                                                  extensions=EXTENSIONS)

    def metadata(self, name: str, version: str) -> service_pb2.ModelMetadataResponse:
        """Names, datatypes and shapes as they are on the wire. Raises as `find`."""
        spec = self.find(name, version).spec

        def tensors(declared):
            return [service_pb2.ModelMetadataResponse.TensorMetadata(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.shape) for tensor in declared.values()]

        return service_pb2.ModelMetadataResponse(name=spec.name, versions=[VERSION], platform=spec.config.backend,
                                                 inputs=tensors(spec.inputs), outputs=tensors(spec.outputs))

    def statistics(self, name: str, version: str) -> service_pb2.ModelStatisticsResponse:
        """Of one model, or of all where the name is empty. Raises ProtocolError INVALID_ARGUMENT."""
        if not name:
            return service_pb2.ModelStatisticsResponse(
                model_stats=[model.statistics.as_message() for model in self._models.values()])
        if name not in self._models:
            raise ProtocolError("INVALID_ARGUMENT", f"requested model '{name}' is not available")
        try:
            model = self.find(name, version)
        except ProtocolError as error:
            if error.status != "NOT_FOUND":
                raise
            raise ProtocolError("INVALID_ARGUMENT",
                                f"requested model version is not available for model '{name}'") from None
        return service_pb2.ModelStatisticsResponse(model_stats=[model.statistics.as_message()])

    def index(self, only_ready: bool) -> service_pb2.RepositoryIndexResponse:
        """Every model with its version and state."""
        is_ready = self.is_ready()
        state, reason = ("READY", "") if is_ready else ("UNAVAILABLE", "the engine is not running")
        return service_pb2.RepositoryIndexResponse(models=[
            service_pb2.RepositoryIndexResponse.ModelIndex(name=name, version=VERSION, state=state, reason=reason)
            for name in sorted(self._models) if is_ready or not only_ready])


def _version_number(version: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", version):
        raise ProtocolError("INVALID_ARGUMENT", "failed to get model version from specified version string "
                            f"'{version}' (details: stol), version should be an integral value > 0")
    if version.startswith("-"):
        raise ProtocolError("INVALID_ARGUMENT", f"invalid model version specified '{version}' , version should be an "
                            "integral value > 0")
    return int(version)
