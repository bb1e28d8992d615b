"""Token embedding and output head, the vocabulary divided over the ranks (padded up where tp does not divide it).

Used by models/decoder.py."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from backend.distributed import TensorParallel
from backend.kernels import dispatch as kernels
from backend.layers.parameter import Shard, ShardedModule
from backend.layers.rms_norm import RMSNorm
from backend.layers.weight_format import DENSE


class TokenEmbedding(ShardedModule):
    """token ids [T] int64 → [T, hidden_size]. Each rank looks up its own rows; the others' are zero in the sum."""

    def __init__(self, vocab_size: int, hidden_size: int, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        shard = Shard.padded((vocab_size, hidden_size), tp)
        self.declare("weight", shard)
        self.first_id = tp.rank * shard.local_shape[0]

    def forward(self, token_ids: Tensor) -> Tensor:
        if self.tp.size == 1:
            return functional.embedding(token_ids, self.weight)
        local_ids = token_ids - self.first_id
        is_elsewhere = (local_ids < 0) | (local_ids >= self.weight.shape[0])
        hidden = functional.embedding(local_ids.masked_fill(is_elsewhere, 0), self.weight)
        return self.tp.all_reduce(hidden.masked_fill_(is_elsewhere[:, None], 0))


class OutputHead(ShardedModule):
    """norm(hidden) [R, hidden_size] → logits [R, vocab_size] float32, whole on every rank."""

    def __init__(self, hidden_size: int, vocab_size: int, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.vocab_size = vocab_size
        self.declare("weight", Shard.padded((vocab_size, hidden_size), tp))

    def prepare(self) -> None:
        DENSE.prepare(self)

    def forward(self, hidden: Tensor, norm: RMSNorm) -> Tensor:
        logits = self.tp.all_gather(kernels.logits(hidden, self.weight, norm.operands))
        return logits[:, : self.vocab_size].contiguous()
