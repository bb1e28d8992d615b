"""What a family of models is: how its configuration and its tensor names become ours.

A family states `model_config` (configuration → ModelConfig) and `map_tensors` (source names → canonical names, in the
order of the model). SourceTensors, handed to map_tensors, checks each tensor's shape as it is taken and remembers which
were; the names that are left over are an error. Used by the families and by canonical.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from backend.config import ModelConfig
from backend.errors import CheckpointError
from converter.checkpoint import GENERATION_CONFIG, Checkpoint
from converter.families.rope import is_number_or_none, rope_config
from converter.lazy_tensor import Cast, LazyTensor

CanonicalTensors = Iterator[tuple[str, LazyTensor]]


@dataclass(frozen=True, slots=True)
class Family:
    """name for messages; architectures as config.json's `architectures` spells them

    embedding        source name of the token embedding, which says the checkpoint's dtype
    output           source name of the output layer; tied checkpoints may store a copy of the embedding there
    model_config     (checkpoint, model_name, dtype) → ModelConfig
    map_tensors      (source tensors, model) → (canonical name, tensor), in the order of the model
    ignored_suffixes of tensors that the model can do without, like stored rotary frequencies"""

    name: str
    architectures: tuple[str, ...]
    embedding: str
    output: str
    model_config: Callable[[Checkpoint, str, str], ModelConfig]
    map_tensors: Callable[[SourceTensors, ModelConfig], CanonicalTensors]
    ignored_suffixes: tuple[str, ...] = ("rotary_emb.inv_freq",)

    def matches(self, config: Mapping[str, Any]) -> bool:
        return any(name in self.architectures for name in config.get("architectures") or ())


class SourceTensors:
    """A checkpoint's tensors, taken by name with the shape that the configuration asks for, in the model's dtype.

    quant  how the linear layers' are stored; None: like the others"""

    def __init__(self, checkpoint: Checkpoint, model: ModelConfig) -> None:
        self.is_tied = bool(checkpoint.config.get("tie_word_embeddings", False))
        self.folder = checkpoint.folder
        self.quant = model.quant
        self._checkpoint = checkpoint
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._taken: set[str] = set()

    def __call__(self, name: str, *shape: int) -> LazyTensor:
        """Raises CheckpointError if the tensor is missing or of another shape."""
        tensor = self.stored(name, *shape)
        return tensor if tensor.dtype == self._dtype else Cast(tensor, self._dtype)

    def has(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def stored(self, name: str, *shape: int) -> LazyTensor:
        """In the dtype that it is stored in. Raises CheckpointError as above."""
        tensor = self._checkpoint.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self._checkpoint.folder}: tensor {name} is in no file; "
                                  "the checkpoint is incomplete, download it again")
        if tensor.shape != shape:
            raise CheckpointError(f"{tensor.where} has shape {list(tensor.shape)}, but "
                                  f"{self._checkpoint.config_file.name} asks for {list(shape)}; "
                                  "the files are not of one model, download them again")
        self._taken.add(name)
        return tensor

    def check_all_taken(self, ignored_suffixes: tuple[str, ...]) -> None:
        """Raises CheckpointError for tensors that the model would not use: its output would be silently wrong."""
        left = sorted(name for name in self._checkpoint.tensors
                      if name not in self._taken and not name.endswith(ignored_suffixes))
        if left:
            where = self._checkpoint.tensors[left[0]].where
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(f"{where}{more}: unknown to this architecture; the checkpoint is a variant "
                                  "that cannot be converted")


def check_kinds(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for a configuration value of another kind than any published model has there."""
    for file, config in ((checkpoint.config_file, checkpoint.config),
                         (checkpoint.folder / GENERATION_CONFIG, checkpoint.generation_config)):
        for key, is_right, kind in _KINDS:
            if config.get(key) is not None and not is_right(config[key]):
                raise CheckpointError(f"{file}: {key} is {config[key]!r}, but has to be {kind}; "
                                      "download the file again")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_KINDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *((key, _is_count, "a whole number >= 1")
      for key in ("head_dim", "num_key_value_heads", "n_kv_heads", "sliding_window")),
    *((key, is_number_or_none, "a number") for key in ("rms_norm_eps", "norm_eps", "rope_theta", "max_window_layers")),
    ("architectures", lambda names: isinstance(names, list) and all(isinstance(name, str) for name in names),
     "a list of names"),
    ("quantization_config", lambda table: isinstance(table, Mapping), "a table"),
    ("eos_token_id", lambda ids: all(type(token_id) is int for token_id in (ids if isinstance(ids, list) else [ids])),
     "an id or a list of ids"),
)


def decoder_config(checkpoint: Checkpoint, model_name: str, dtype: str, *, head_dim: int | None = None,
                   attention_bias: bool = False, output_bias: bool = False, qk_norm: bool = False,
                   sliding_window: int | None = None) -> ModelConfig:
    """ModelConfig from the keys that all Hugging Face decoders share; a family gives what is its own.

    Raises CheckpointError for a missing key or a feature that is not supported."""
    config = checkpoint.config
    for key, supported in (("hidden_act", ("silu",)), ("mlp_bias", (False,)), ("partial_rotary_factor", (1, 1.0))):
        if config.get(key) not in (None, *supported):
            raise CheckpointError(f"{checkpoint.config_file}: {key}={config[key]!r} is not supported; "
                                  f"only {supported[0]!r} is")
    hidden_size = integer(checkpoint, "hidden_size")
    num_heads = integer(checkpoint, "num_attention_heads")
    head_dim = head_dim or config.get("head_dim") or hidden_size // num_heads
    max_position_embeddings = integer(checkpoint, "max_position_embeddings")
    bos_token_id = config.get("bos_token_id")
    return ModelConfig(
        model_name=model_name,
        vocab_size=integer(checkpoint, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=integer(checkpoint, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        intermediate_size=integer(checkpoint, "intermediate_size"),
        norm_eps=float(config.get("rms_norm_eps") or 1e-6),
        rope=rope_config(checkpoint.config_file, config, head_dim, max_position_embeddings),
        max_position_embeddings=max_position_embeddings,
        bos_token_id=bos_token_id if isinstance(bos_token_id, int) else None,
        eos_token_ids=_eos_token_ids(checkpoint),
        dtype=dtype,
        attention_bias=attention_bias,
        output_bias=output_bias,
        qk_norm=qk_norm,
        sliding_window=sliding_window,
    )


def integer(checkpoint: Checkpoint, key: str) -> int:
    """A whole number >= 1 of the configuration. Raises CheckpointError."""
    value = checkpoint.config.get(key)
    if not _is_count(value):
        raise CheckpointError(f"{checkpoint.config_file}: {key} is {value!r}, but has to be a whole number >= 1; "
                              "download the file again")
    return value


def _eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Ids that end a generation: chat models list theirs in generation_config.json, base models in config.json."""
    ids: dict[int, None] = {}  # keeps the order, drops repeats
    for config in (checkpoint.config, checkpoint.generation_config):
        value = config.get("eos_token_id")
        ids.update(dict.fromkeys(value if isinstance(value, list) else [] if value is None else [value]))
    return tuple(ids)
