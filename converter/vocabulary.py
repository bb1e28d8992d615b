"""Vocabulary: the tokenizer's ids against the model's embedding.

Used by source.py and convert.py, which both bring a tokenizer and a model together."""

from __future__ import annotations

import dataclasses

from backend.config import ModelConfig
from backend.errors import CheckpointError
from converter.canonical import CanonicalModel
from converter.tokenizer import TokenizerInfo


def with_tokenizer_ids(canonical: CanonicalModel, tokenizer: TokenizerInfo) -> ModelConfig:
    """The model with the tokenizer's start and end ids where its own configuration has none (Meta's has none).

    Raises CheckpointError if the tokenizer has ids that the embedding has no row for."""
    model = canonical.model
    if tokenizer.vocab_size > model.vocab_size:
        where = canonical.tensors["tok_embeddings.weight"].where
        raise CheckpointError(f"{where} has {model.vocab_size} rows, but the tokenizer has ids up to "
                              f"{tokenizer.vocab_size - 1}; use the tokenizer that the checkpoint was trained with")
    bos_token_id = tokenizer.bos_token_id if model.bos_token_id is None else model.bos_token_id
    eos_token_ids = model.eos_token_ids
    if not eos_token_ids and tokenizer.eos_token_id is not None:
        eos_token_ids = (tokenizer.eos_token_id,)
    return dataclasses.replace(model, bos_token_id=bos_token_id, eos_token_ids=eos_token_ids)
