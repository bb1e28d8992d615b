"""Memory plan: what weights, KV cache and everything else take of a device, worked out before anything is loaded.

Pure arithmetic over configurations; knows no device. Used by worker (prints it, enforces it; its CUDA graphs are those
that are planned here) and scheduler (blocks_of)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from backend.config import EngineConfig, ModelConfig, possible_tp
from backend.errors import CapacityError
from backend.kv_format import KvFormat, kv_format

GIB = 2**30
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
RUNTIME_BYTES = 512 * 2**20  # allocator slack, matmuls' workspace (17 MiB a launch), kernels, libraries on a GPU
# 4-bit weights as the kernels keep them: in whole tiles of outputs x inputs, with a word for each output and group.
INT4_TILE = 16, 128
INT4_GROUP_BYTES = 4
INT4_SCRATCH_BYTES = 64 * 2**20  # what steps of many tokens unpack them into on a GPU, a part of a matrix at a time
INT4_CPU_SCRATCH = 10  # on the CPU, bytes for each weight of the largest matrix; 9.2 were seen: float32, and the way
# What a CUDA graph takes of the driver's memory for each decoder layer, generously: 35 graphs of Llama-2-7B's shape,
# with logits and activations of 256 rows, took 0.23 GiB where 0.39 were planned (one H200, 2026-11-21).
GRAPH_LAYER_BYTES = 2**18
# On a GPU, what a quantised history is unpacked into for the fused prefill, a group of KV heads at a time.
KV_SCRATCH_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one rank. `num_blocks` KV blocks of `block_size` tokens take `kv_bytes`.

    weight_format  how the weights are kept, in words"""

    weight_format: str
    weights_bytes: int
    kv_format: KvFormat
    kv_bytes: int
    other_bytes: int
    num_blocks: int
    block_size: int
    session_len: int

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def num_sessions(self) -> int:
        """Sessions of full length that fit at the same time."""
        return self.num_blocks // blocks_of(self.session_len, self.block_size)

    def __str__(self) -> str:
        return (f"weights {_gib(self.weights_bytes)} ({self.weight_format}), KV cache {_gib(self.kv_bytes)}: "
                f"{self.kv_format.value}, {self.num_blocks:,} blocks x {self.block_size} tokens = "
                f"{self.num_tokens:,} tokens or {self.num_sessions:,} full sessions of {self.session_len:,}, "
                f"other {_gib(self.other_bytes)}")


def plan_memory(model: ModelConfig, config: EngineConfig, dtype: str, free_bytes: int, *,
                has_kv_scales: bool = False, weights_loaded: bool = False, on_cpu: bool = False) -> MemoryPlan:
    """The plan for `free_bytes` of one rank's device memory.

    has_kv_scales   the workspace brings calibrated scales, see kv_format
    weights_loaded  free_bytes was measured with the weights already there
    on_cpu          host memory is shared with other programs: no more blocks than full rows can use
    Raises CapacityError that names the one option, and its value, with which the model would fit."""
    weights = weights_bytes(model, dtype, config.tp)
    kv = kv_format(config.quant_policy, has_kv_scales)
    block = kv_block_bytes(model, config, dtype, kv)
    other = other_bytes(model, config, dtype, on_cpu) + block  # the worker adds one block for padding
    free = free_bytes if weights_loaded else free_bytes - weights
    most = (free - other) // block
    if free <= other or most < 1:
        raise CapacityError(f"weights need {_gib(weights)} and work space {_gib(other)}, "
                            f"but {_gib(free + weights)} is free; "
                            f"use {_larger_tp(model, config, dtype, free + weights, on_cpu)}a device with more memory")
    wanted = config.cache_max_entry_count
    per_session = blocks_of(config.session_len, config.block_size)
    if wanted >= 1:
        num_blocks = int(wanted)
        if num_blocks > most:
            raise CapacityError(f"cache_max_entry_count={num_blocks} KV blocks need {_gib(num_blocks * block)}, "
                                f"but {_gib(most * block)} is free; use cache_max_entry_count={most} or less")
    else:
        num_blocks = min(int(free * wanted) // block, most)
        if on_cpu:
            num_blocks = min(num_blocks, config.max_batch_size * per_session)
    if num_blocks < per_session:
        fits = num_blocks * config.block_size
        cure = f"session_len={fits}" if fits else f"cache_max_entry_count={min(0.95, most * block / free):.2f}"
        raise CapacityError(f"session_len={config.session_len} needs {per_session} KV blocks "
                            f"({_gib(per_session * block)}), but there is room for {num_blocks}; use {cure}")
    return MemoryPlan(model.weights_in_words(dtype), weights, kv, num_blocks * block, other, num_blocks,
                      config.block_size, config.session_len)


def blocks_of(num_tokens: int, block_size: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // block_size)


def weights_bytes(model: ModelConfig, dtype: str, tp: int) -> int:
    """Bytes of one rank's weights; norms and their like are on every rank."""
    heads, kv_heads, hidden = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim, model.hidden_size
    split, whole = 0, 2 * hidden
    if model.attention_bias:
        split += heads + 2 * kv_heads
    if model.output_bias:
        whole += hidden
    if model.qk_norm:
        whole += 2 * model.head_dim
    vocabulary = 2 * model.vocab_size * hidden
    count = model.num_layers * (split // tp + whole) + vocabulary // tp + hidden
    return model.num_layers * linear_bytes(model, dtype, tp) + count * DTYPE_BYTES[dtype]


def linear_shapes(model: ModelConfig, tp: int = 1) -> dict[str, tuple[int, int]]:
    """Outputs and inputs, on one rank, of the linear layers of a decoder layer, whose weights can be quantised."""
    heads, kv_heads = model.num_heads * model.head_dim // tp, model.num_kv_heads * model.head_dim // tp
    hidden, inner = model.hidden_size, model.intermediate_size // tp
    return {"attention.w_qkv": (heads + 2 * kv_heads, hidden), "attention.wo": (hidden, heads),
            "feed_forward.w13": (2 * inner, hidden), "feed_forward.w2": (hidden, inner)}


def num_linear_weights(model: ModelConfig) -> int:
    """Weights of the linear layers of all decoder layers."""
    return model.num_layers * sum(outputs * inputs for outputs, inputs in linear_shapes(model).values())


def linear_bytes(model: ModelConfig, dtype: str, tp: int) -> int:
    """Bytes, on one rank, of the linear layers' weights of a decoder layer."""
    shapes = linear_shapes(model, tp).values()
    if model.quant is None:
        return sum(outputs * inputs for outputs, inputs in shapes) * DTYPE_BYTES[dtype]
    tile_bytes = INT4_TILE[0] * (INT4_TILE[1] // 2 + INT4_TILE[1] // model.quant.group_size * INT4_GROUP_BYTES)
    return sum(math.ceil(outputs / INT4_TILE[0]) * math.ceil(inputs / INT4_TILE[1]) for outputs, inputs in shapes
               ) * tile_bytes


def kv_block_bytes(model: ModelConfig, config: EngineConfig, dtype: str, kv: KvFormat) -> int:
    """Bytes of one KV block over all layers, on one rank."""
    local_kv_heads = model.num_kv_heads // config.tp
    return model.num_layers * config.block_size * local_kv_heads * kv.head_bytes(model.head_dim, DTYPE_BYTES[dtype])


def other_bytes(model: ModelConfig, config: EngineConfig, dtype: str, on_cpu: bool) -> int:
    """Activations of the largest step, logits and sampling, the row tables, CUDA graphs, and the runtime's own."""
    tokens = config.max_prefill_tokens + config.max_batch_size
    local = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim + 3 * model.intermediate_size
    activations = tokens * (4 * model.hidden_size + math.ceil(local / config.tp)) * DTYPE_BYTES[dtype]
    activations += unpacked_bytes(model, config.tp, on_cpu)
    # Logits, scores, counts, the rows whose log-probabilities are wanted, and these: what sampler.py holds at once.
    sampling = 5 * min(config.max_batch_size, tokens) * model.vocab_size * 4
    tables = config.max_batch_size * (config.session_len + 1) * 8 + config.session_len * model.rope.dim * 8
    if on_cpu:
        return activations + sampling + tables
    graphs = graph_bytes(model, config, dtype) if uses_cuda_graphs(config) else 0
    kv_scratch = KV_SCRATCH_BYTES if config.quant_policy and config.use_context_fmha else 0
    return activations + sampling + tables + graphs + kv_scratch + RUNTIME_BYTES


def unpacked_bytes(model: ModelConfig, tp: int, on_cpu: bool) -> int:
    """What 4-bit weights are unpacked into to be multiplied."""
    if model.quant is None:
        return 0
    largest = max(outputs * inputs for outputs, inputs in linear_shapes(model, tp).values())
    return largest * INT4_CPU_SCRATCH if on_cpu else INT4_SCRATCH_BYTES


def uses_cuda_graphs(config: EngineConfig) -> bool:
    """Whether decode steps on a GPU run as CUDA graphs; ranks that talk to each other do not, so far."""
    return config.cuda_graphs and config.tp == 1


def graph_batch_sizes(max_batch_size: int) -> list[int]:
    """The batch sizes for which a CUDA graph is captured, ascending; a step runs in the next larger one.

    Close to one another, since a padding row costs what a row costs but for its attention."""
    sizes = [1, 2, 4, 8, *range(16, 256, 8), *range(256, max_batch_size, 32)]
    return [size for size in sizes if size < max_batch_size] + [max_batch_size]


def graph_bytes(model: ModelConfig, config: EngineConfig, dtype: str) -> int:
    """The driver's memory for all graphs; the activations and logits of the largest, which the others share; and each
    one's own block tables."""
    sizes = graph_batch_sizes(config.max_batch_size)
    local = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim + 3 * model.intermediate_size
    activations = (4 * model.hidden_size + local + model.vocab_size) * DTYPE_BYTES[dtype]
    logits = 2 * model.vocab_size * 4
    tables = sum(sizes) * 4 * blocks_of(config.session_len, config.block_size)
    return len(sizes) * model.num_layers * GRAPH_LAYER_BYTES + sizes[-1] * (activations + logits) + tables


def _larger_tp(model: ModelConfig, config: EngineConfig, dtype: str, free_bytes: int, on_cpu: bool) -> str:
    """The first with which weights and work space fit, in words; nothing where there is none."""
    for tp in possible_tp(model):
        shared = dataclasses.replace(config, tp=tp)
        needed = weights_bytes(model, dtype, tp) + other_bytes(model, shared, dtype, on_cpu)
        if tp > config.tp and needed < free_bytes:
            return f"tp={tp} or "
    return ""


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
