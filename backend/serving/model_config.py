"""Model config: one model's config.pbtxt, the single source of tensor names, types and shapes, as the servers use it.

Read with the real protobuf, so that what is accepted here is what Triton Inference Server accepts.
Used by model_repository.py; `ModelSpec` by everything that checks or encodes tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from backend.errors import WorkspaceError
from backend.serving.tensors import TensorSpec

CONFIG_FILE = "config.pbtxt"
VERSION = "1"  # of every model: the one folder beside its config.pbtxt


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model takes and gives; inputs and outputs in the order of its config.pbtxt.

    max_batch_size  0: tensors have no batch axis; otherwise each wire shape starts with it
    config          the whole file, with what the server fills in"""

    name: str
    max_batch_size: int
    is_decoupled: bool
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    config: model_config_pb2.ModelConfig


def read_model_config(file: Path) -> ModelSpec:
    """The model that a config.pbtxt declares.

    Raises WorkspaceError where the file is missing, does not parse, or declares a type that numpy has not."""
    try:
        config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError) as error:
        raise WorkspaceError(f"{file} cannot be read ({error}); convert the checkpoint again") from None
    except text_format.ParseError as error:
        raise WorkspaceError(f"{file} is no model configuration: {error}; convert the checkpoint again") from None
    if not config.name:
        config.name = file.parent.name
    for tensor in config.output:
        if tensor.HasField("reshape"):
            raise WorkspaceError(f"{file}: output {tensor.name} has a reshape, which is not supported; declare the "
                                 "shape that the model gives")
    has_batch = config.max_batch_size > 0
    spec = ModelSpec(
        name=config.name,
        max_batch_size=config.max_batch_size,
        is_decoupled=config.model_transaction_policy.decoupled,
        inputs=_tensors(config.input, has_batch, file),
        outputs=_tensors(config.output, has_batch, file),
        config=config,
    )
    _fill_in(config)
    return spec


def _tensors(declared, has_batch: bool, file: Path) -> dict[str, TensorSpec]:
    tensors = {}
    for tensor in declared:
        type_name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        try:
            tensors[tensor.name] = TensorSpec.declare(
                name=tensor.name,
                type_name=type_name,
                shape=((-1,) if has_batch else ()) + tuple(tensor.dims),
                model_shape=((-1,) if has_batch else ()) + tuple(tensor.reshape.shape)
                if tensor.HasField("reshape") else None,
                is_optional=getattr(tensor, "optional", False),
            )
        except KeyError:
            raise WorkspaceError(f"{file}: tensor {tensor.name} has type {type_name}, which is not supported") from None
    return tensors


def _fill_in(config: model_config_pb2.ModelConfig) -> None:
    """What Triton Inference Server adds to a configuration before it shows it."""
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    for number, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{number}"
        group.count = group.count or 1
    config.default_model_filename = config.default_model_filename or "model.py"
