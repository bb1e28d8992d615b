"""Canonicalise: a checkpoint as the one decoder that the backend knows, its tensors under canonical names.

Chooses the family and refuses what none can read. Used by source.py and convert.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from backend.config import DTYPES, ModelConfig
from backend.errors import CheckpointError, ConfigError
from converter.checkpoint import Checkpoint
from converter.families.base import Family, SourceTensors, check_kinds
from converter.families.internlm2 import INTERNLM2
from converter.families.llama import INTERNLM, LLAMA, MISTRAL
from converter.families.meta import META
from converter.families.qwen import QWEN2, QWEN3
from converter.lazy_tensor import LazyTensor
from converter.quantization import quant_config

FAMILIES = (LLAMA, INTERNLM, INTERNLM2, QWEN2, QWEN3, MISTRAL)


@dataclass(frozen=True, slots=True)
class CanonicalModel:
    """tensors: canonical name → tensor, of model.dtype or packed as model.quant says, in the order of the model."""

    model: ModelConfig
    tensors: dict[str, LazyTensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def canonicalise(checkpoint: Checkpoint, model_name: str, dtype: str | None = None) -> CanonicalModel:
    """dtype: torch's name of the dtype to convert to; None keeps the checkpoint's.

    Raises CheckpointError for an unsupported architecture and for tensors that are missing, unknown or misshapen."""
    check_kinds(checkpoint)
    family = family_of(checkpoint)
    model = _model(checkpoint, family, model_name, dtype or _stored_dtype(checkpoint, family))
    source = SourceTensors(checkpoint, model)
    tensors = dict(family.map_tensors(source, model))
    source.check_all_taken((*family.ignored_suffixes, family.output) if source.is_tied else family.ignored_suffixes)
    return CanonicalModel(model, tensors)


def outline(checkpoint: Checkpoint, model_name: str) -> ModelConfig:
    """The model that a Hugging Face configuration describes; none of its tensors need be there, so its dtype is the
    one that it tells. Raises CheckpointError, or ConfigError for a dtype that there is not."""
    check_kinds(checkpoint)
    dtype = checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype") or "bfloat16"
    return _model(checkpoint, family_of(checkpoint), model_name, dtype)


def _model(checkpoint: Checkpoint, family: Family, model_name: str, dtype: str) -> ModelConfig:
    quant = quant_config(checkpoint)
    model = family.model_config(checkpoint, model_name, dtype)
    try:
        return dataclasses.replace(model, quant=quant)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.config_file}: {error}") from None


def family_of(checkpoint: Checkpoint) -> Family:
    """Raises CheckpointError for an architecture that is not supported."""
    if checkpoint.is_meta:
        return META
    config = checkpoint.config
    for family in FAMILIES:
        if family.matches(config):
            return family
    names = ", ".join(config.get("architectures") or ()) or config.get("model_type", "none")
    supported = ", ".join(f"{family.name} ({family.architectures[0]})" for family in FAMILIES)
    raise CheckpointError(f"{checkpoint.config_file}: architecture {names} is not supported; supported are {supported}")


def _stored_dtype(checkpoint: Checkpoint, family: Family) -> str:
    """The dtype of the stored weights, which config.json's torch_dtype does not always tell."""
    tensor = checkpoint.tensors.get(family.embedding)
    if tensor is None:
        raise CheckpointError(f"{checkpoint.folder}: tensor {family.embedding} is in no file; "
                              "the checkpoint is incomplete, download it again")
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES.values():
        raise CheckpointError(f"{tensor.where} is stored as {name}; choose one with --dtype {'|'.join(DTYPES)}")
    return name
