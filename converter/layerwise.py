"""Layerwise: a model run one decoder layer at a time, so that only one layer's weights are on the device.

The layers are the backend's own (backend.models.decoder), each filled from a ModelSource when it is its turn, with a
KV cache for itself alone; what passes from layer to layer are hidden states, which may wait in the host's memory.
Used by kv_calibration.py, quantise_checkpoint.py and accuracy.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backend.config import EngineConfig, check_engine
from backend.distributed import TensorParallel
from backend.errors import NotFiniteError
from backend.forward_batch import ForwardBatch, LayerKv
from backend.kv_format import KvFormat
from backend.layers.embedding import OutputHead
from backend.layers.parameter import ShardedModule
from backend.layers.rms_norm import RMSNorm
from backend.model_source import ModelSource
from backend.models.decoder import Decoder, DecoderLayer
from backend.worker.device import resolve_device, resolve_dtype
from backend.worker.weight_loader import match_tensors

BLOCK_SIZE = 64


class LayerwiseModel:
    """The layers of a model source, made one by one as `engine` would run them.

    engine  device, dtype and attention kernel count; session_len tokens make a sequence
    Raises ConfigError for what cannot be, CheckpointError for tensors that are not the model's."""

    def __init__(self, source: ModelSource, engine: EngineConfig) -> None:
        check_engine(source.model, engine)
        self.model = source.model
        self.seqlen = engine.session_len
        self.device = resolve_device(engine)
        self.dtype = resolve_dtype(engine, source.model, self.device)
        self._use_fused_prefill = engine.use_context_fmha
        declared = Decoder(source.model, engine, TensorParallel())  # without memory
        self._stored = {name: stored for name, (stored, *_) in match_tensors(declared, source).items()}
        self.rotary = declared.rotary.to(self.device)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids [...] → the first layer's input [..., hidden_size] in the host's memory."""
        return self._stored["tok_embeddings.weight"][:][token_ids].to("cpu", self.dtype)

    def layer(self, index: int) -> DecoderLayer:
        """A decoder layer with its weights. Raises CheckpointError where one cannot be read."""
        # It is alone, so layer 0 of the KV cache is its own.
        layer = DecoderLayer(self.model, 0, TensorParallel(), self._use_fused_prefill)
        for path, module in layer.named_modules():
            if isinstance(module, ShardedModule):
                self._fill(module, f"layers.{index}.{path}")
        return layer

    def output(self) -> tuple[RMSNorm, OutputHead]:
        """What follows the last layer. Raises CheckpointError where its weights cannot be read."""
        norm = RMSNorm(self.model.hidden_size, self.model.norm_eps)
        head = OutputHead(self.model.hidden_size, self.model.vocab_size, TensorParallel())
        self._fill(norm, "norm")
        self._fill(head, "output")
        return norm, head

    def _fill(self, module: ShardedModule, path: str) -> None:
        for name in tuple(module.shards):
            dtype = module.own_dtypes.get(name, self.dtype)
            module.set_parameter(name, self._stored[f"{path}.{name}"][:].to(self.device, dtype))
        module.prepare()

    @torch.inference_mode()
    def advance(self, layer: DecoderLayer, index: int, hidden: Tensor, batch_size: int,
                progress: Callable[[int], object], look: Callable[[ForwardBatch], object] | None = None) -> None:
        """Replaces hidden [B, L, hidden_size], wherever it waits, by the layer's output, batch_size rows at a time.

        index     the layer's place, for messages
        progress  told the number of sequences after each batch
        look      shown each batch when the layer has stored its keys and values
        Raises NotFiniteError where an output is not finite."""
        for start in range(0, len(hidden), batch_size):
            inputs = hidden[start : start + batch_size]
            batch = self.batch(len(inputs))
            output = layer(inputs.to(self.device, copy=True).flatten(0, 1), self.rotary, batch)
            if not output.isfinite().all():
                other = "" if self.dtype == torch.float32 else ", or run with --device cpu, which computes in float32"
                raise NotFiniteError(
                    f"{self.model.model_name}: layer {index} gives NaN or infinite activations on the calibration text "
                    f"in {str(self.dtype).removeprefix('torch.')}; the checkpoint may be damaged, download it again"
                    f"{other}")
            if look is not None:
                look(batch)
            inputs.copy_(output.view(inputs.shape))
            progress(len(inputs))

    def batch(self, num_sequences: int) -> ForwardBatch:
        """The prefill of so many sequences of seqlen tokens, with a new KV cache for one layer."""
        blocks = -(-self.seqlen // BLOCK_SIZE)
        block_tables = torch.arange(num_sequences * blocks, dtype=torch.int32).view(num_sequences, blocks)
        positions = torch.arange(self.seqlen).repeat(num_sequences)
        first_slots = torch.arange(num_sequences) * blocks * BLOCK_SIZE
        slots = (first_slots[:, None] + torch.arange(self.seqlen)).flatten()
        keys, values = torch.zeros((2, num_sequences * blocks, self.model.num_kv_heads, BLOCK_SIZE,
                                    self.model.head_dim), dtype=self.dtype, device=self.device)
        return ForwardBatch(
            token_ids=torch.empty(0, dtype=torch.int64, device=self.device),  # hidden states come from outside
            positions=positions.to(self.device),
            slot_mapping=slots.to(self.device),
            block_tables=block_tables.to(self.device),
            context_lens=torch.full((num_sequences,), self.seqlen, dtype=torch.int32, device=self.device),
            query_start=torch.arange(num_sequences + 1, dtype=torch.int32, device=self.device) * self.seqlen,
            logits_indices=torch.empty(0, dtype=torch.int64, device=self.device),
            kv_cache=[LayerKv(KvFormat.AS_MODEL, keys, values, None)],
            num_decodes=0,
            max_query_len=self.seqlen,
            max_context_len=self.seqlen,
            sum_context_len=num_sequences * self.seqlen,
        )


def keys_and_values(batch: ForwardBatch) -> tuple[Tensor, Tensor]:
    """What a layer has just stored for the batch's tokens, each [T, K, D]: keys after rotary, and values."""
    cache, slots = batch.kv_cache[0], batch.slot_mapping
    return tuple(heads.transpose(1, 2).flatten(0, 1)[slots] for heads in (cache.k, cache.v))
