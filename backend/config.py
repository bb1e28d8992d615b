"""Configuration: frozen dataclasses, and their one form on disk, `config.ini`.

`config.ini` is a single `[llama]` table of valid TOML whose keys keep LMDeploy's names; `_KEYS` is the only place where
those names meet ours. Configs are complete at construction and never patched: what is measured later (the number of KV
blocks) is returned by whoever measured it. Used everywhere; imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomli

from backend.config_faults import explain_syntax
from backend.errors import ConfigError
from backend.kv_format import QUANT_POLICIES

FORMAT_VERSION = 1
MAX_HEAD_DIM = 256  # of the attention kernels
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}  # weight_type in config.ini → torch's name
DTYPE_SPELLINGS = (*DTYPES, *DTYPES.values())
INT4 = "int4"  # weight_type of quantised weights, whose activations then have a dtype of their own
GROUP_SIZES = (32, 64, 128)
ROPE_SCALING_TYPES = ("none", "linear", "dynamic", "llama3")


def dtype_name(spelling: str) -> str:
    """torch's name of a dtype in either spelling, fp16 or float16. Raises ConfigError for one that is neither."""
    if spelling not in DTYPE_SPELLINGS:
        raise ConfigError(f"dtype={spelling!r} is not supported; use one of {', '.join(DTYPE_SPELLINGS)}")
    return DTYPES.get(spelling, spelling)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. `dim` is the number of rotated values per head; the rest as in Hugging Face's rope_scaling."""

    dim: int
    theta: float = 10000.0
    scaling_type: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0

    def __post_init__(self) -> None:
        if self.scaling_type not in ROPE_SCALING_TYPES:
            raise ConfigError(f"rope_scaling_type={self.scaling_type!r} is not supported; "
                              f"use one of {', '.join(ROPE_SCALING_TYPES)}")
        if self.dim < 2 or self.dim % 2:
            raise ConfigError(f"rotary_embedding={self.dim} does not work; use an even number >= 2")
        for key, value in (("rope_theta", self.theta), ("rope_scaling_factor", self.factor)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{key}={value} does not work; use a number > 0")
        if self.scaling_type == "llama3" and self.original_max_position_embeddings <= 0:
            raise ConfigError("rope_scaling_type=llama3 needs rope_scaling_original_max_position_embeddings > 0")


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """Weights in 4 bits, as AWQ publishes them (Lin et al., 2023): those of the linear layers inside decoder layers.
    Embedding, norms, biases and output head stay in the model's dtype.

    group_size  inputs that share a scale and a zero point"""

    group_size: int

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(f"group_size={self.group_size} is not supported; "
                              f"use one of {', '.join(map(str, GROUP_SIZES))}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A LLaMA-shaped decoder: everything that layers need to exist, and nothing about how it is run.

    dtype           of the weights or, where those are quantised, of all else
    quant           how weights are quantised; None: they are not
    attention_bias  on q, k and v;  output_bias  on the attention's output projection;  qk_norm  RMSNorm per head
    sliding_window  attention the model was trained with; longer sessions are refused rather than wrong"""

    model_name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str = "bfloat16"
    attention_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    quant: QuantConfig | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "intermediate_size", "max_position_embeddings"):
            if getattr(self, name) < 1:
                key = next(key for key, (_, field) in _KEYS.items() if field == name)
                raise ConfigError(f"{key}={getattr(self, name)} is too small; use at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"head_num={self.num_heads} is not a multiple of kv_head_num={self.num_kv_heads}")
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        if self.quant is not None:
            _check_groups(self, self.quant.group_size)

    def weights_in_words(self, dtype: str) -> str:
        """How the weights are kept where the compute dtype is this."""
        return dtype if self.quant is None else f"int4, groups of {self.quant.group_size}, {dtype} activations"

    @property
    def row_inputs(self) -> dict[str, int]:
        """Inputs of the linear layers whose inputs tensor-parallel ranks divide, by canonical name."""
        return {"wo": self.num_heads * self.head_dim, "w2": self.intermediate_size}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a model is run. Every field can be set in config.ini and overridden when the engine starts.

    session_len            longest prompt + completion of one sequence, tokens
    max_prefill_tokens     prompt tokens computed in one step; longer prompts are cut into chunks
    cache_max_entry_count  a share in (0, 1) of the memory free after the weights, or a number >= 1 of KV blocks
    block_size             tokens per KV block
    quant_policy           0: KV in the model's dtype; 8: int8; 4: int4, or int8 where there are calibrated scales
    max_queued             requests that may wait for a place in the full batch; one more is refused
    session_ttl_s          seconds after which an idle session is forgotten
    use_context_fmha       1: fused prefill attention; 0: plain attention that materialises scores
    cuda_graphs            decode steps on one GPU are recorded at the start and replayed; off: each kernel launched
    device, dtype          "auto": CUDA if there is one; the checkpoint's dtype on CUDA, float32 on the CPU"""

    session_len: int
    max_batch_size: int = 512
    max_prefill_tokens: int = 8192
    cache_max_entry_count: float = 0.8
    block_size: int = 64
    enable_prefix_caching: bool = True
    use_context_fmha: bool = True
    cuda_graphs: bool = True
    quant_policy: int = 0
    max_queued: int = 100_000
    session_ttl_s: int = 86_400
    tp: int = 1
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in ("session_len", "max_batch_size", "max_prefill_tokens", "max_queued", "session_ttl_s", "tp"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} does not work; use an integer >= 1")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ConfigError(f"cache_block_seq_len={self.block_size} does not work; use a power of two >= 16, like 64")
        share = self.cache_max_entry_count
        if not 0 < share < math.inf or (share >= 1 and share != int(share)):
            raise ConfigError(f"cache_max_entry_count={share} does not work; "
                              "use a share in (0, 1) of the free memory, or a whole number >= 1 of KV blocks")
        if self.quant_policy not in QUANT_POLICIES:
            raise ConfigError(f"quant_policy={self.quant_policy!r} is no KV cache format; use 0 (the model's dtype), "
                              "8 (int8) or 4 (int4; with calibrated scales int8)")
        if self.dtype != "auto":
            object.__setattr__(self, "dtype", dtype_name(self.dtype))

    def with_options(self, options: Mapping[str, Any]) -> EngineConfig:
        """A copy with the options that are not None. Raises ConfigError for a name that does not exist."""
        known = {field.name for field in fields(self)}
        for name in options:
            if name not in known:
                raise ConfigError(f"unknown engine option {name!r}{_nearest(name, known)}")
        return dataclasses.replace(self, **{name: value for name, value in options.items() if value is not None})


def _check_groups(model: ModelConfig, group_size: int) -> None:
    if model.head_dim % 8:
        raise ConfigError(f"size_per_head={model.head_dim} of {model.model_name} is not a multiple of the 8 weights "
                          "in a word of int4; use unquantised weights")
    for name, count in {"w_qkv and w13": model.hidden_size, **model.row_inputs}.items():
        if count % group_size:
            fitting = [size for size in GROUP_SIZES if count % size == 0]
            cure = f"quantise in groups of one of {fitting}" if fitting else "use unquantised weights"
            raise ConfigError(f"group_size={group_size} does not divide the {count} inputs of {name} of "
                              f"{model.model_name}; {cure}")


def check_engine(model: ModelConfig, engine: EngineConfig) -> None:
    """Raises ConfigError, naming what would work, for engine options with which this model can never run."""
    name, longest = model.model_name, engine.session_len
    for what, count in _divided(model).items():
        if count % engine.tp:
            raise ConfigError(f"tp={engine.tp} does not divide {what}={count} of {name}; "
                              f"use tp in {possible_tp(model)}")
    if model.head_dim > MAX_HEAD_DIM:
        raise ConfigError(f"size_per_head={model.head_dim} of {name} is not supported; the largest is {MAX_HEAD_DIM}")
    if model.sliding_window is not None and longest > model.sliding_window:
        raise ConfigError(f"session_len={longest} exceeds the {model.sliding_window} tokens of {name}'s attention "
                          f"window; use session_len={model.sliding_window}")
    stretch = model.rope.factor if model.rope.scaling_type == "linear" else 1
    num_positions = int(model.max_position_embeddings * stretch)
    if model.rope.scaling_type != "dynamic" and longest > num_positions:
        raise ConfigError(f"session_len={longest} exceeds the {num_positions} positions that {name} knows; "
                          f"use session_len={num_positions}, or set rope_scaling_type = \"dynamic\" in config.ini")


def possible_tp(model: ModelConfig) -> list[int]:
    """Every tp that divides the model, ascending."""
    common = math.gcd(*_divided(model).values())
    return [tp for tp in range(1, common + 1) if common % tp == 0]


def _divided(model: ModelConfig) -> dict[str, int]:
    """What ranks divide among them, by what it is called in messages."""
    divided = {"head_num": model.num_heads, "kv_head_num": model.num_kv_heads, "inter_size": model.intermediate_size}
    if model.quant is None:
        return divided
    size = model.quant.group_size  # each rank needs whole groups of inputs
    return divided | {f"{name}'s groups of {size} inputs": count // size for name, count in model.row_inputs.items()}


# config.ini key → (which dataclass, field). "rope" and "quant" fields live in ModelConfig.rope and ModelConfig.quant.
# weight_type says the dtype, and activation_type and group_size are not there; or it says int4, and they are.
_KEYS: dict[str, tuple[str, str]] = {
    "model_name": ("model", "model_name"),
    "head_num": ("model", "num_heads"),
    "kv_head_num": ("model", "num_kv_heads"),
    "size_per_head": ("model", "head_dim"),
    "hidden_units": ("model", "hidden_size"),
    "vocab_size": ("model", "vocab_size"),
    "num_layer": ("model", "num_layers"),
    "inter_size": ("model", "intermediate_size"),
    "norm_eps": ("model", "norm_eps"),
    "attn_bias": ("model", "attention_bias"),
    "attn_output_bias": ("model", "output_bias"),
    "qk_norm": ("model", "qk_norm"),
    "sliding_window": ("model", "sliding_window"),
    "max_position_embeddings": ("model", "max_position_embeddings"),
    "start_id": ("model", "bos_token_id"),
    "end_id": ("model", "eos_token_ids"),
    "weight_type": ("model", "dtype"),
    "activation_type": ("model", "dtype"),
    "group_size": ("quant", "group_size"),
    "rotary_embedding": ("rope", "dim"),
    "rope_theta": ("rope", "theta"),
    "rope_scaling_type": ("rope", "scaling_type"),
    "rope_scaling_factor": ("rope", "factor"),
    "rope_scaling_low_freq_factor": ("rope", "low_freq_factor"),
    "rope_scaling_high_freq_factor": ("rope", "high_freq_factor"),
    "rope_scaling_original_max_position_embeddings": ("rope", "original_max_position_embeddings"),
    "session_len": ("engine", "session_len"),
    "max_batch_size": ("engine", "max_batch_size"),
    "max_prefill_token_num": ("engine", "max_prefill_tokens"),
    "cache_max_entry_count": ("engine", "cache_max_entry_count"),
    "cache_block_seq_len": ("engine", "block_size"),
    "enable_prefix_caching": ("engine", "enable_prefix_caching"),
    "use_context_fmha": ("engine", "use_context_fmha"),
    "cuda_graphs": ("engine", "cuda_graphs"),
    "quant_policy": ("engine", "quant_policy"),
    "max_queued": ("engine", "max_queued"),
    "session_ttl_s": ("engine", "session_ttl_s"),
    "tp": ("engine", "tp"),
}
_ALIASES = {"tensor_para_size": "tp"}
# The engine's keys as config.ini explains them.
_ENGINE_MEANINGS = {
    "session_len": "longest prompt + answer of one conversation, tokens",
    "max_batch_size": "sequences that run at the same time",
    "max_prefill_token_num": "prompt tokens computed in one step; longer prompts are cut into chunks",
    "cache_max_entry_count": "KV cache: share in (0, 1) of the memory free after the weights, or a number of blocks",
    "cache_block_seq_len": "tokens per KV block",
    "enable_prefix_caching": "1: prompts that begin alike share their KV",
    "use_context_fmha": "1: fused prefill attention; 0: plain, slower",
    "cuda_graphs": "1: decode steps are recorded at the start, fast; 0: a faster start, slower steps",
    "quant_policy": "KV cache; 0: as the model, 8: int8, 4: int4 (int8 where past_kv_scale.safetensors is)",
    "max_queued": "requests that may wait; one more is refused",
    "session_ttl_s": "seconds after which an idle conversation is forgotten",
    "tp": "GPUs that share the model",
}
_WEIGHT_TYPES = {name: key for key, name in DTYPES.items()}


def render_config(model: ModelConfig, engine: EngineConfig) -> str:
    """The text of config.ini. Values that a file does not hold (device, dtype) stay the start's own choice."""
    holders = {"model": model, "rope": model.rope, "quant": model.quant, "engine": engine}
    values = {key: getattr(holders[holder], field) for key, (holder, field) in _KEYS.items()
              if holders[holder] is not None}
    if model.quant is None:
        del values["activation_type"]
    else:
        values["weight_type"] = INT4
    lines = {key: f"{key} = {_to_toml(key, value)}" for key, value in values.items() if value is not None}
    width = max(len(lines[key]) for key in _ENGINE_MEANINGS)
    return "\n".join([
        "[llama]",
        "# What the checkpoint is: do not edit.",
        f"format_version = {FORMAT_VERSION}",
        *(line for key, line in lines.items() if key not in _ENGINE_MEANINGS),
        "",
        "# How it is run: edit freely; it holds from the next start on.",
        *(f"{lines[key]:{width}}  # {meaning}" for key, meaning in _ENGINE_MEANINGS.items()),
    ]) + "\n"


def read_config(path: Path) -> tuple[ModelConfig, EngineConfig]:
    """Parses config.ini. Raises ConfigError, naming file and key, for anything that is not exactly right."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(explain_syntax(path, text, error)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); save it as UTF-8, or convert again") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if set(document) != {"llama"} or not isinstance(document["llama"], dict):
        raise ConfigError(f"{path} holds the tables {sorted(document)}; it needs exactly one, [llama]")
    values: dict[str, dict[str, Any]] = {"model": {}, "rope": {}, "quant": {}, "engine": {}}
    table = {_ALIASES.get(key, key): value for key, value in document["llama"].items()}
    version = table.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path}: format_version={version}, but this Millrace reads {FORMAT_VERSION}; convert again")
    _check_weight_type(path, table)
    if table.get("weight_type") == INT4:
        del table["weight_type"]
    for key, value in table.items():
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}{_nearest(key, _KEYS)}")
        holder, field = _KEYS[key]
        values[holder][field] = _from_toml(path, key, value)
    try:
        rope = RopeConfig(**values["rope"])
        quant = QuantConfig(**values["quant"]) if values["quant"] else None
        return ModelConfig(**values["model"], rope=rope, quant=quant), EngineConfig(**values["engine"])
    except TypeError:
        missing = [key for key, (holder, field) in _KEYS.items()
                   if holder != "quant" and field not in values[holder] and _is_required(holder, field)]
        raise ConfigError(f"{path}: missing {', '.join(missing)}; convert the checkpoint again") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _check_weight_type(path: Path, table: Mapping[str, Any]) -> None:
    if "weight_type" not in table:  # activation_type would pass for it
        raise ConfigError(f"{path}: missing weight_type; convert the checkpoint again")
    weight_type = table["weight_type"]
    for key in ("activation_type", "group_size"):
        if weight_type == INT4 and key not in table:
            raise ConfigError(f'{path}: weight_type = "{INT4}" needs {key}; convert the checkpoint again')
        if weight_type in DTYPE_SPELLINGS and key in table:
            raise ConfigError(f'{path}: {key} is for weight_type = "{INT4}"; remove it, or convert again')


def _is_required(holder: str, field_name: str) -> bool:
    owner = {"model": ModelConfig, "rope": RopeConfig, "engine": EngineConfig}[holder]
    field = next(field for field in fields(owner) if field.name == field_name)
    return field.default is dataclasses.MISSING


def _to_toml(key: str, value: Any) -> str:
    if key in ("weight_type", "activation_type"):
        value = _WEIGHT_TYPES.get(value, value)
    if key == "end_id":
        value = value[0] if len(value) == 1 else list(value)
    if isinstance(value, bool):
        return str(int(value))  # 0/1, as LMDeploy writes flags
    return json.dumps(value, ensure_ascii=False)  # JSON's strings, numbers and integer lists are TOML's


_INTEGERS = {"num_heads", "num_kv_heads", "head_dim", "hidden_size", "vocab_size", "num_layers", "intermediate_size",
             "max_position_embeddings", "bos_token_id", "dim", "original_max_position_embeddings", "session_len",
             "max_batch_size", "max_prefill_tokens", "block_size", "quant_policy", "max_queued", "session_ttl_s", "tp",
             "sliding_window", "group_size"}
_FLAGS = {"attention_bias", "output_bias", "qk_norm", "enable_prefix_caching", "use_context_fmha", "cuda_graphs"}
_FLOATS = {"norm_eps", "theta", "factor", "low_freq_factor", "high_freq_factor", "cache_max_entry_count"}


def _from_toml(path: Path, key: str, value: Any) -> Any:
    field = _KEYS[key][1]
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if field in _FLAGS and value in (0, 1, True, False):
        return bool(value)
    if field in _INTEGERS and is_integer:
        return value
    if field in _FLOATS and (is_integer or isinstance(value, float)):
        return float(value)
    if key == "end_id" and is_integer:
        return (value,)
    if key == "end_id" and isinstance(value, list) and all(isinstance(item, int) for item in value):
        return tuple(value)
    if field == "dtype" and value in DTYPE_SPELLINGS:
        return dtype_name(value)
    if key in ("model_name", "rope_scaling_type") and isinstance(value, str):
        return value
    wanted = ("0 or 1" if field in _FLAGS else "an integer" if field in _INTEGERS else "a number" if field in _FLOATS
              else f"one of {', '.join(DTYPE_SPELLINGS)}" + f" or {INT4}" * (key == "weight_type") if field == "dtype"
              else "a quoted string")
    raise ConfigError(f"{path}: {key} = {value!r} does not work; it needs {wanted}")


def _nearest(name: str, known: Any) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; known are {', '.join(sorted(known))}"
