"""Accuracy: what a format of weights or KV costs, measured on a text through the decoder that serves it.

Teacher-forced: every token of the text is predicted from those before it, in chunks, so that later chunks read the KV
cache as it is stored. The base model runs first and leaves behind its hidden states and its output head, which together
are its logits but take a hundredth of their memory; then each format runs alone. The whole text goes through one layer
before the next one is read, so that a model need not fit the device, and logits exist for a few tokens at a time.
Used by auto_awq.py, kv_qparams.py and benchmarks/accuracy.py."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.accuracy_report import AccuracyReport
from backend.config import EngineConfig
from backend.distributed import TensorParallel
from backend.errors import CheckpointError, ConfigError
from backend.forward_batch import ForwardBatch, LayerKv
from backend.kv_format import KvFormat, kv_format
from backend.memory_plan import blocks_of
from backend.model_source import ModelSource
from backend.requests import SamplingParams
from backend.steps import RowSetup, ScheduledRow, StepPlan
from backend.text.tokenizer import Tokenizer
from backend.worker.input_builder import InputBuilder
from backend.worker.kv_cache import allocate_kv_cache
from backend.worker.past_kv_scale import read_past_kv_scale
from backend.worker.row_tables import RowTables
from backend.workspace import PAST_KV_SCALE
from converter.layerwise import LayerwiseModel

CHUNK_TOKENS = 128  # of a window in a step: what a step adds to the cache, the next one reads
WINDOWS_PER_STEP = 8
LOGITS_BYTES = 128 << 20  # of one copy of the logits that exist at a time
MAX_LOSS = 100.0  # a loss beyond is no model's, and its perplexity no number that a reader takes in
MIN_WINDOW_TOKENS = 2  # one to read, one to predict


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """Token windows; within each, every token but the first is predicted. `name` is what a report calls the text."""

    name: str
    windows: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.windows or min(map(len, self.windows)) < MIN_WINDOW_TOKENS:
            raise CheckpointError(f"{self.name} is too short to predict anything from; give a longer text")

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(len(window) - 1 for window in self.windows)

    @property
    def longest(self) -> int:
        return max(map(len, self.windows))


def evaluation_text(name: str, text: str, source: ModelSource, *, window_tokens: int = 512,
                    max_tokens: int = 16_384) -> EvaluationText:
    """The text's first tokens in windows, each with the model's start token in front, if it has one.

    Windows after the first begin anywhere, as texts that are cut do. Raises CheckpointError for less than a token."""
    window_tokens = min(window_tokens, source.model.max_position_embeddings)
    bos = () if source.model.bos_token_id is None else (source.model.bos_token_id,)
    ids = Tokenizer(source.tokenizer_dir).encode(text, parse_special=False)[:max_tokens]
    size = window_tokens - len(bos)
    windows = [bos + tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    return EvaluationText(name, tuple(window for window in windows if len(window) >= MIN_WINDOW_TOKENS))


def measure_accuracy(base: ModelSource, source: ModelSource, engine: EngineConfig, text: EvaluationText,
                     progress: Callable[[int], object] | None = None) -> AccuracyReport:
    """The loss of `source` as `engine` runs it against `base`, which is not quantised.

    engine    device, dtype, quant_policy, block size and attention kernel count; the base has the same but for its KV
    progress  called with the number of tokens that were just computed; 2 * text.num_tokens in all
    Raises what loading a model raises, and CheckpointError where logits are not finite."""
    return measure_baseline(base, engine, text, progress).compare(source, engine, progress)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is left of the unquantised model: enough to know its logits at every token of the text.

    norm, head  its last two layers, on the device
    hidden      per window [len(window) - 1, hidden_size], what they are given, on the host"""

    description: str
    vocab_size: int
    text: EvaluationText
    norm: nn.Module
    head: nn.Module
    hidden: list[Tensor]

    def compare(self, source: ModelSource, engine: EngineConfig,
                progress: Callable[[int], object] | None = None) -> AccuracyReport:
        """The report of one format. Raises what loading a model raises, ConfigError for another model's format, and
        CheckpointError for logits that are not finite."""
        if source.model.vocab_size != self.vocab_size:
            raise ConfigError(f"{source.path} has a vocabulary of {source.model.vocab_size}, {self.description} one of "
                              f"{self.vocab_size}; compare a model with itself, unquantised")
        scorer = _Scorer(source, engine, self.text.longest)
        sums = torch.zeros(4, dtype=torch.float64)
        for index, hidden in enumerate(scorer.hidden_states(self.text.windows, progress)):
            found = self._window_sums(index, hidden, scorer)
            if not found.isfinite().all():
                raise CheckpointError(f"{source.path}: logits are not finite; its weights or KV scales are damaged, "
                                      "make them again")
            sums += found
        base_loss, loss, divergence, same = (sums / self.text.num_tokens).tolist()
        return AccuracyReport(
            model_name=source.model.model_name, weights=source.model.weights_in_words(source.model.dtype),
            kv=kv_format_of(source, engine).value, base=self.description, text=self.text.name,
            num_tokens=self.text.num_tokens, base_perplexity=_perplexity(base_loss), perplexity=_perplexity(loss),
            kl_divergence=_rounded(max(0.0, divergence)), top1_agreement=_rounded(same), date=time.strftime("%Y-%m-%d"),
            versions={"python": platform.python_version(), "torch": torch.__version__})

    @torch.inference_mode()
    def _window_sums(self, index: int, hidden: Tensor, scorer: _Scorer) -> Tensor:
        """_sums of a window, given the hidden states of the format; on the host."""
        targets = torch.tensor(self.text.windows[index][1:], device=hidden.device)
        size = max(1, LOGITS_BYTES // (4 * self.vocab_size))
        sums = torch.zeros(4, dtype=torch.float64, device=hidden.device)
        for base, own, wanted in zip(self.hidden[index].split(size), hidden.split(size), targets.split(size),
                                     strict=True):
            sums += _sums(_log_probs(self.norm, self.head, base.to(hidden.device)),
                          _log_probs(*scorer.output, own), wanted)
        return sums.cpu()


def measure_baseline(source: ModelSource, engine: EngineConfig, text: EvaluationText,
                     progress: Callable[[int], object] | None = None) -> Baseline:
    """Runs the unquantised model over the text, its KV in the compute dtype. Raises what loading a model raises."""
    scorer = _Scorer(source, replace(engine, quant_policy=0), text.longest)
    hidden = [states.cpu() for states in scorer.hidden_states(text.windows, progress)]
    weights, dtype = source.model.weights_in_words(source.model.dtype), str(scorer.layers.dtype).removeprefix("torch.")
    description = f"{source.model.model_name}, weights {weights}, computed in {dtype}"
    return Baseline(description, source.model.vocab_size, text, *scorer.output, hidden)


def kv_format_of(source: ModelSource, engine: EngineConfig) -> KvFormat:
    """The KV format that a model runs with."""
    return kv_format(engine.quant_policy, (source.path / PAST_KV_SCALE).is_file())


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Tokens of several windows that run together: (window, how many), one after the other, and their batch."""

    parts: tuple[tuple[int, int], ...]
    batch: ForwardBatch


class _Scorer:
    """A model that predicts given tokens: the engine's layers on the engine's batches, without sampling.

    output  the last norm and the output head, on the device"""

    def __init__(self, source: ModelSource, engine: EngineConfig, longest: int) -> None:
        self.blocks_per_row = blocks_of(longest, engine.block_size)
        engine = replace(engine, session_len=longest, max_batch_size=WINDOWS_PER_STEP, tp=1, cuda_graphs=False,
                         max_prefill_tokens=WINDOWS_PER_STEP * CHUNK_TOKENS)
        self.layers = LayerwiseModel(source, engine)
        self.output = self.layers.output()
        self._kv_scale = read_past_kv_scale(source, engine, TensorParallel())
        device = self.layers.device
        [self._kv_cache] = allocate_kv_cache(
            replace(source.model, num_layers=1), engine, WINDOWS_PER_STEP * self.blocks_per_row, self.layers.dtype,
            device, self._kv_scale)
        self._inputs = InputBuilder(RowTables(source.model, engine, device), [self._kv_cache], device)

    @torch.inference_mode()
    def hidden_states(self, windows: Sequence[Sequence[int]],
                      progress: Callable[[int], object] | None) -> list[Tensor]:
        """For each window the hidden states [len(window) - 1, hidden_size] that its next tokens are predicted from."""
        chunks = list(self._chunks(windows))
        token_ids = [chunk.batch.token_ids for chunk in chunks]
        embedded = self.layers.embed(torch.cat(token_ids).cpu()).to(self.layers.device)
        each = embedded.split(list(map(len, token_ids)))  # of a chunk, changed from layer to layer
        num_layers, num_done, num_told = self.layers.model.num_layers, 0, 0
        for index in range(num_layers):
            layer, kv_cache = self.layers.layer(index), [self._layer_kv(index)]
            for chunk, hidden in zip(chunks, each, strict=True):  # each finds the KV of those before it
                layer(hidden, self.layers.rotary, replace(chunk.batch, kv_cache=kv_cache))
                num_done += len(hidden)
                if progress is not None:
                    progress(num_done // num_layers - num_told)
                num_told = num_done // num_layers
            del layer  # before the next one's weights come
        parts: list[list[Tensor]] = [[] for _ in windows]
        for chunk, hidden in zip(chunks, each, strict=True):
            for (window, _), own in zip(chunk.parts, hidden.split([count for _, count in chunk.parts]), strict=True):
                parts[window].append(own)
        return [torch.cat(own) for own in parts]

    def _layer_kv(self, index: int) -> LayerKv:
        """The one KV cache, which each layer fills anew, with the layer's own scales where these are calibrated."""
        if self._kv_scale is None:
            return self._kv_cache
        return replace(self._kv_cache, scales=self._kv_scale[index].to(self.layers.device))

    def _chunks(self, windows: Sequence[Sequence[int]]) -> Iterator[_Chunk]:
        """All tokens but each window's last. Windows of like length run together."""
        order = sorted(range(len(windows)), key=lambda index: len(windows[index]))
        for start in range(0, len(order), WINDOWS_PER_STEP):
            together = order[start : start + WINDOWS_PER_STEP]
            inputs = [windows[index][:-1] for index in together]
            for cached in range(0, max(map(len, inputs)), CHUNK_TOKENS):
                yield self._chunk(together, inputs, cached)

    def _chunk(self, together: Sequence[int], inputs: Sequence[Sequence[int]], cached: int) -> _Chunk:
        """One chunk of each row that has one left."""
        new = {row: min(CHUNK_TOKENS, len(ids) - cached) for row, ids in enumerate(inputs) if len(ids) > cached}
        rows = sorted(new, key=lambda row: new[row] > 1)  # a plan lists rows with one new token first
        setups = () if cached else tuple(self._setup(row, inputs[row]) for row in rows)
        plan = StepPlan(cached, setups, tuple(ScheduledRow(row, cached, new[row], (), False) for row in rows))
        return _Chunk(tuple((together[row], new[row]) for row in rows), self._inputs.build(plan)[0])

    def _setup(self, row: int, token_ids: Sequence[int]) -> RowSetup:
        blocks = range(row * self.blocks_per_row, (row + 1) * self.blocks_per_row)
        return RowSetup(row, tuple(token_ids), len(token_ids), tuple(blocks), SamplingParams(temperature=0.0), (), 0)


def _log_probs(norm: nn.Module, head: nn.Module, hidden: Tensor) -> Tensor:
    """[n, hidden_size] → [n, V] float32."""
    return functional.log_softmax(head(hidden, norm), dim=-1)


def _sums(base: Tensor, own: Tensor, targets: Tensor) -> Tensor:
    """[4] float64, over n tokens: loss of the base, own loss, KL divergence, tokens with the same likeliest successor.

    base, own [n, V] log-probabilities; targets [n]."""
    column = targets[:, None]
    divergence = functional.kl_div(own, base, reduction="none", log_target=True).sum(-1)
    same = base.argmax(-1) == own.argmax(-1)
    return torch.stack([each.double().sum() for each in (
        -base.gather(1, column), -own.gather(1, column), divergence, same)])


def _perplexity(loss: float) -> float:
    return _rounded(math.exp(min(loss, MAX_LOSS)))


def _rounded(value: float) -> float:
    """Six digits that mean something."""
    return float(f"{value:.6g}")
