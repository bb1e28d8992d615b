"""Kernels: each alone against its floor, at the sizes that a decode or prefill step meets.

    python -m benchmarks.kernels --shape m7
    python -m benchmarks.kernels --shape g8 --only linear,decode_attention

The floor is the larger of bytes over the measured read bandwidth (each input read once, each output written once) and
operations over the measured matmul rate. Weights and KV come from memory, small activations from the L2 cache, as in a
step. Kernels are called as layers call them, through backend/kernels/dispatch.py. Each group below is a function that
yields its cases, on torch's default device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from backend.command_line import CONTEXT_SETTINGS, run
from backend.config import ModelConfig
from backend.forward_batch import LayerKv
from backend.kernels import dispatch as kernels
from backend.kernels.w4_weight import W4Weight, packed_bytes
from backend.kv_format import KvFormat
from backend.layers.rotary import rotary_table
from backend.requests import SamplingParams
from backend.steps import RowSetup
from backend.worker.device import free_memory_bytes
from backend.worker.sampler import sample
from backend.worker.sampling_state import SamplingState
from backend.worker.upload import upload
from benchmarks.device_limits import DeviceLimits, measure_limits, need_gpu
from benchmarks.graph_timing import num_copies, seconds_each
from benchmarks.record import RESULTS, save
from benchmarks.shapes import SHAPES

BLOCK_SIZE = 64
DTYPE = torch.bfloat16
ITEM = 2  # bytes of a value
LINEAR_TOKENS = (1, 2, 8, 16, 64, 256, 4096, 8192)
W4_LINEAR_TOKENS = (1, 2, 8, 16, 64, 256, 4096)
W4_GROUP_SIZE = 128
DECODE_TOKENS = (1, 16, 64, 256, 8192)
BATCHES = (1, 16, 64, 256)
CONTEXTS = (512, 2048, 4096, 8192, 32768)
PREFILLS = ((4, 2048), (1, 8192))  # (sequences, tokens of each)
KV_MEMORY_SHARE = 0.7  # of what is free: attention cases that need more KV are left out


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel at one size.

    launch  runs it once on the given one of `copies` sets of buffers
    row, column  where it stands in the group's table"""

    row: str
    column: str
    num_bytes: float
    flops: float
    copies: int
    launch: Callable[[int], object]

    def floor_s(self, limits: DeviceLimits) -> float:
        return max(self.num_bytes / limits.read_bytes_s, self.flops / limits.matmul_flops_s)

    def is_compute(self, limits: DeviceLimits) -> bool:
        return self.flops / limits.matmul_flops_s > self.num_bytes / limits.read_bytes_s


def linear_cases(model: ModelConfig) -> Iterator[Case]:
    """The linear layers of a decoder layer and the output head, with the norm, gate and addition that are theirs."""
    hidden, inner, q_size = model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim
    matrices = {"w_qkv": (q_size + 2 * model.num_kv_heads * model.head_dim, hidden), "wo": (hidden, q_size),
                "w13": (2 * inner, hidden), "w2": (hidden, inner), "output": (model.vocab_size, hidden)}
    for name, shape in matrices.items():
        weights = [_normal(*shape, std=0.02) for _ in range(num_copies(ITEM * shape[0] * shape[1]))]
        for tokens in LINEAR_TOKENS:
            if name == "output" and tokens > max(BATCHES):  # logits only of a step's last tokens
                continue
            yield _linear_case(name, tokens, weights)


def w4_linear_cases(model: ModelConfig) -> Iterator[Case]:
    """The linear layers of a decoder layer with weights of four bits, to stand beside `linear`."""
    hidden, inner, q_size = model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim
    matrices = {"w_qkv": (q_size + 2 * model.num_kv_heads * model.head_dim, hidden), "wo": (hidden, q_size),
                "w13": (2 * inner, hidden), "w2": (hidden, inner)}
    for name, (out_features, in_features) in matrices.items():
        num_bytes = packed_bytes(in_features, out_features, W4_GROUP_SIZE)
        weights = [_w4_weight(out_features, in_features) for _ in range(num_copies(num_bytes))]
        for tokens in W4_LINEAR_TOKENS:
            yield _w4_linear_case(name, tokens, weights)


def _w4_linear_case(name: str, tokens: int, weights: list[W4Weight]) -> Case:
    in_features, out_features = weights[0].in_features, weights[0].out_features
    inputs = [_normal(tokens, in_features) for _ in weights]
    norm = torch.ones(in_features, dtype=DTYPE), 1e-5
    residuals = [_normal(tokens, out_features) for _ in weights] if name in ("wo", "w2") else []
    launches: dict[str, Callable[[int], object]] = {
        "w_qkv": lambda copy: kernels.linear_w4(inputs[copy], weights[copy], norm=norm),
        "w13": lambda copy: kernels.linear_w4(inputs[copy], weights[copy], norm=norm, is_gated=True)}
    for adds in ("wo", "w2"):
        launches[adds] = lambda copy: kernels.linear_w4(inputs[copy], weights[copy], residual=residuals[copy])
    return Case(name, str(tokens), weights[0].packed.nbytes + ITEM * tokens * (in_features + out_features),
                2 * tokens * out_features * in_features, len(weights), launches[name])


def _w4_weight(out_features: int, in_features: int) -> W4Weight:
    shape = in_features // W4_GROUP_SIZE, out_features // 8
    words = torch.randint(-2**31, 2**31, (in_features, shape[1]), dtype=torch.int32)
    zeros = torch.randint(-2**31, 2**31, shape, dtype=torch.int32)
    return kernels.pack_w4(words, zeros, torch.full((shape[0], out_features), 0.004, dtype=torch.float16))


def _linear_case(name: str, tokens: int, weights: list[Tensor]) -> Case:
    out_features, in_features = weights[0].shape
    inputs = [_normal(tokens, in_features) for _ in weights]
    norm = torch.ones(in_features, dtype=DTYPE), 1e-5
    residuals = [_normal(tokens, out_features) for _ in weights] if name in ("wo", "w2") else []
    launches: dict[str, Callable[[int], object]] = {
        "w_qkv": lambda copy: kernels.linear(inputs[copy], weights[copy], norm=norm),
        "w13": lambda copy: kernels.linear(inputs[copy], weights[copy], norm=norm, is_gated=True),
        "output": lambda copy: kernels.logits(inputs[copy], weights[copy], norm)}
    for adds in ("wo", "w2"):
        launches[adds] = lambda copy: kernels.linear(inputs[copy], weights[copy], residual=residuals[copy])
    return Case(name, str(tokens), ITEM * (out_features * in_features + tokens * (in_features + out_features)),
                2 * tokens * out_features * in_features, len(weights), launches[name])


def elementwise_cases(model: ModelConfig) -> Iterator[Case]:
    """The norm, and rotary embedding with KV store, as a prefill has them."""
    table = rotary_table(model.rope, max(CONTEXTS), max(CONTEXTS), model.max_position_embeddings)
    table = table.to(torch.get_default_device())
    for tokens in DECODE_TOKENS:
        yield from _elementwise_cases(model, tokens, table)


def _elementwise_cases(model: ModelConfig, tokens: int, table: Tensor) -> Iterator[Case]:
    hidden, head_dim = model.hidden_size, model.head_dim
    num_q, num_kv = model.num_heads, model.num_kv_heads
    copies = num_copies(ITEM * tokens * hidden)

    def case(name: str, values_per_token: int, launch: Callable[[int], object]) -> Case:
        return Case(name, str(tokens), ITEM * tokens * values_per_token, 0, copies, launch)

    weight = torch.ones(hidden, dtype=DTYPE)
    rows = [_normal(tokens, hidden) for _ in range(copies)]
    yield case("rms_norm", 2 * hidden, lambda copy: kernels.rms_norm(rows[copy], weight, 1e-5))
    qkv = [_normal(tokens, num_q + 2 * num_kv, head_dim) for _ in range(copies)]
    heads = [each.split((num_q, num_kv, num_kv), dim=1) for each in qkv]
    positions = torch.randint(0, max(CONTEXTS), (tokens,))
    cache = _kv_cache(model, KvFormat.AS_MODEL, -(-copies * tokens // BLOCK_SIZE))
    slots = torch.randperm(copies * tokens).view(copies, tokens)
    yield case("rotary_and_store", 2 * (num_q + 2 * num_kv) * head_dim, lambda copy: kernels.rotary_and_store(
        *heads[copy], positions, table, cache, slots[copy]))


def decode_attention_cases(model: ModelConfig, kv: KvFormat) -> Iterator[Case]:
    """One new token per sequence: rotated, stored, and attending to its paged KV."""
    token_bytes = model.num_kv_heads * kv.head_bytes(model.head_dim, ITEM)
    most_tokens = free_memory_bytes(torch.get_default_device()) * KV_MEMORY_SHARE / token_bytes
    sizes = [(batch, context) for batch in BATCHES for context in CONTEXTS if 2 * batch * context < most_tokens]
    pool = max(batch * context * num_copies(batch * context * token_bytes) for batch, context in sizes)
    cache = _kv_cache(model, kv, pool // BLOCK_SIZE)
    table = rotary_table(model.rope, max(CONTEXTS), max(CONTEXTS), model.max_position_embeddings)
    table = table.to(torch.get_default_device())
    for batch, context in sizes:
        yield _decode_attention_case(model, batch, context, table, cache)


def _decode_attention_case(model: ModelConfig, batch: int, context: int, table: Tensor, cache: LayerKv) -> Case:
    num_heads, num_kv_heads, head_dim = model.num_heads, model.num_kv_heads, model.head_dim
    num_bytes = batch * context * num_kv_heads * cache.format.head_bytes(head_dim, ITEM)
    copies = num_copies(num_bytes)
    parts = num_heads, num_kv_heads, num_kv_heads
    heads = [_normal(batch, sum(parts), head_dim).split(parts, dim=1) for _ in range(copies)]
    tables = _block_tables(cache, copies, batch, context)
    lens = torch.full((batch,), context, dtype=torch.int32)
    positions = torch.full((batch,), context - 1)
    slots = [each[:, -1].long() * BLOCK_SIZE + BLOCK_SIZE - 1 for each in tables]
    return Case(f"batch {batch}", str(context), num_bytes + 2 * batch * num_heads * head_dim * ITEM,
                4 * batch * context * num_heads * head_dim, copies, lambda copy: kernels.paged_decode(
                    *heads[copy], positions, table, cache, slots[copy], tables[copy], lens, head_dim**-0.5))


def prefill_attention_cases(model: ModelConfig, kv: KvFormat) -> Iterator[Case]:
    """Whole prompts, causal."""
    for batch, tokens in PREFILLS:
        yield _prefill_attention_case(model, kv, batch, tokens)


def _prefill_attention_case(model: ModelConfig, kv: KvFormat, batch: int, tokens: int) -> Case:
    num_heads, num_kv_heads, head_dim = model.num_heads, model.num_kv_heads, model.head_dim
    copies = 2
    cache = _kv_cache(model, kv, copies * batch * tokens // BLOCK_SIZE)
    tables = _block_tables(cache, copies, batch, tokens)
    queries = [_normal(batch * tokens, num_heads, head_dim) for _ in range(copies)]
    lens = torch.full((batch,), tokens, dtype=torch.int32)
    query_start = torch.arange(batch + 1, dtype=torch.int32) * tokens
    num_bytes = batch * tokens * (2 * num_heads * head_dim * ITEM + num_kv_heads * kv.head_bytes(head_dim, ITEM))
    return Case("prompts", f"{batch} x {tokens}", num_bytes,
                4 * batch * num_heads * head_dim * tokens * (tokens + 1) / 2, copies,
                lambda copy: kernels.paged_prefill(queries[copy], cache, tables[copy], lens, query_start,
                                                   head_dim**-0.5, tokens, tokens, batch * tokens))


def sampling_cases(model: ModelConfig) -> Iterator[Case]:
    """A token for each row: the argmax, a draw from everything, and a draw after every filter."""
    ways = {"greedy": SamplingParams(temperature=0), "temperature": SamplingParams(temperature=1, top_k=0, top_p=1.0),
            "top_k, top_p, min_p": SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02)}
    for name, params in ways.items():
        for batch in BATCHES:
            yield _sampling_case(name, params, batch, model.vocab_size)


def _sampling_case(name: str, params: SamplingParams, batch: int, vocab_size: int) -> Case:
    num_bytes = 4 * batch * vocab_size
    logits = [torch.randn(batch, vocab_size) for _ in range(num_copies(num_bytes))]
    token_table = torch.zeros((batch, 2), dtype=torch.int32)
    state = SamplingState(batch, vocab_size)
    for row in range(batch):
        state.set_row(RowSetup(row, (1,), 1, (), params, (), seed=row))
    rows = np.arange(batch)
    device = torch.get_default_device()
    with torch.device("cpu"):  # it uploads from the host's memory
        wanted = upload(state.batch(rows, np.ones(batch, np.int64), 2 * rows + 1), device)
    return Case(name, str(batch), num_bytes, 0, len(logits), lambda copy: sample(logits[copy], wanted, token_table))


ATTENTION: dict[str, Callable[[ModelConfig], Iterator[Case]]] = {
    f"{name}{suffix}": partial(cases, kv=kv)
    for name, cases in (("decode_attention", decode_attention_cases), ("prefill_attention", prefill_attention_cases))
    for suffix, kv in (("", KvFormat.AS_MODEL), ("_kv8", KvFormat.INT8), ("_kv4", KvFormat.INT4))}
GROUPS: dict[str, Callable[[ModelConfig], Iterator[Case]]] = {
    "linear": linear_cases, "linear_w4": w4_linear_cases, "elementwise": elementwise_cases, **ATTENTION,
    "sampling": sampling_cases}


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.kernels --only linear")
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="m7", show_default=True)
@click.option("--only", default=",".join(GROUPS), show_default=True, help="Which groups, separated by commas.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to keep the result.")
@torch.inference_mode()
def main(shape: str, only: str, file: Path | None) -> None:
    """Every kernel alone, beside what the card allows."""
    names = only.split(",")
    if unknown := [name for name in names if name not in GROUPS]:
        raise click.ClickException(f"--only {','.join(unknown)} is not known; use some of {','.join(GROUPS)}")
    need_gpu()
    limits = measure_limits()
    click.echo(str(limits))
    groups: dict[str, list[dict[str, object]]] = {}
    for name in names:
        click.echo(f"{shape} {name}")
        with torch.device("cuda"):
            groups[name] = [measured(case, limits) for case in GROUPS[name](SHAPES[shape])]
        torch.cuda.empty_cache()
        save(file or RESULTS / f"kernels_{shape}.json", {"shape": shape, **limits.as_json(), "groups": groups})


def measured(case: Case, limits: DeviceLimits) -> dict[str, object]:
    """Times a case, prints its line and returns what is kept of it."""
    seconds = seconds_each([lambda copy=copy: case.launch(copy) for copy in range(case.copies)])
    share = case.floor_s(limits) / seconds
    rate = f"{case.flops / seconds / 1e12:6.0f} TFLOP/s" if case.is_compute(limits) \
        else f"{case.num_bytes / seconds / 1e9:6.0f} GB/s   "
    click.echo(f"  {case.row:20} {case.column:>10} {seconds * 1e6:10.1f} us {rate} {share:6.0%}")
    return {"row": case.row, "column": case.column, "us": round(seconds * 1e6, 2), "share": round(share, 3),
            "gb_s": round(case.num_bytes / seconds / 1e9), "tflop_s": round(case.flops / seconds / 1e12, 1)}


def _normal(*shape: int, std: float = 1.0) -> Tensor:
    return torch.empty(shape, dtype=DTYPE).normal_(std=std)


def _kv_cache(model: ModelConfig, kv: KvFormat, num_blocks: int) -> LayerKv:
    """Full of normal values, or of any levels."""
    heads = num_blocks, model.num_kv_heads, BLOCK_SIZE
    if not kv.num_bits:
        return LayerKv(kv, *(_normal(*heads, model.head_dim) for _ in range(2)), None)
    stored = [torch.randint(256, (*heads, model.head_dim * kv.num_bits // 8), dtype=torch.uint8) for _ in range(2)]
    scales = torch.tensor([6 / 2**kv.num_bits, -3.0], dtype=torch.float16).expand(*heads, 2, 2).contiguous()
    return LayerKv(kv, *stored, scales)


def _block_tables(cache: LayerKv, copies: int, batch: int, context: int) -> Tensor:
    """[copies, batch, blocks of a context] int32: every block of its own, in no order, as after some hours of work."""
    count = copies * batch * (context // BLOCK_SIZE)
    return torch.randperm(cache.num_blocks)[:count].int().view(copies, batch, -1)


if __name__ == "__main__":
    run(main)
