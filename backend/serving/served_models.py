"""Served models: `preprocessing`, `turbomind`, `postprocessing` and `chat`, over one engine.

The first and third are here, the generating ones in files of their own. Plain classes: dicts of arrays in and out.
Both servers, the embedded one and Triton Inference Server, serve exactly these. Imports no torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import numpy as np

from backend.engine.engine_client import EngineClient
from backend.errors import RequestError
from backend.serving.chat_model import ChatModel
from backend.serving.inputs import Inputs, word_table
from backend.serving.long_text import num_characters, read_text
from backend.serving.served_model import InferContext, ServedModel, Tensors
from backend.serving.turbomind_model import TurbomindModel
from backend.text.front_end import TextFrontEnd
from backend.text.tokenizer import Tokenizer
from protocol.models import POSTPROCESSING, PREPROCESSING

BOS_MARK, EOS_MARK = "<BOS>", "<EOS>"  # in a query they stand for the model's own start and end token


def build_models(front_end: TextFrontEnd, engine: EngineClient) -> dict[str, ServedModel]:
    """All served models by name."""
    models: tuple[ServedModel, ...] = (
        Preprocessing(front_end.tokenizer), TurbomindModel(front_end, engine), Postprocessing(front_end.tokenizer),
        ChatModel(front_end, engine))
    return {model.name: model for model in models}


class Preprocessing:
    """Text → token ids; also stop and bad words, in the layout that `turbomind` takes."""

    name = PREPROCESSING

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def infer(self, tensors: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        """See ServedModel.infer."""
        inputs = Inputs(tensors)
        query, bad, stop = inputs.text("QUERY"), inputs.texts("BAD_WORDS_DICT"), inputs.texts("STOP_WORDS_DICT")
        if query is None:
            raise RequestError("QUERY holds no text; send exactly one")
        ids, bad_ids, stop_ids = await read_text(num_characters(query, bad, stop), self._read, query, bad, stop)
        yield {
            "INPUT_ID": np.array([ids], np.uint32).reshape(1, -1),
            "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.uint32),
            "BAD_WORDS_IDS": word_table(bad_ids),
            "STOP_WORDS_IDS": word_table(stop_ids),
            "REQUEST_OUTPUT_LEN": tensors.get("REQUEST_OUTPUT_LEN", np.zeros((1, 1), np.uint32))}

    def _read(self, query: str, *word_lists: tuple[str, ...]) -> tuple[list[Any], ...]:
        """Ids of the query, and of each word of each list."""
        return self._ids(query), *([self._tokenizer.encode(word) for word in words] for words in word_lists)

    def _ids(self, query: str) -> list[int]:
        tokenizer = self._tokenizer
        if query == EOS_MARK and tokenizer.eos_token_id is not None:
            return [tokenizer.eos_token_id]
        parts = query.split(BOS_MARK)
        if len(parts) == 1 or tokenizer.bos_token_id is None:
            return tokenizer.encode(query)
        ids = tokenizer.encode(parts[0]) if parts[0] else []
        for part in parts[1:]:
            ids += [tokenizer.bos_token_id, *(tokenizer.encode(part) if part else ())]
        return ids


class Postprocessing:
    """Token ids → text, one text per beam."""

    name = POSTPROCESSING

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def infer(self, tensors: Tensors, context: InferContext) -> AsyncGenerator[dict[str, np.ndarray], None]:
        """See ServedModel.infer. sequence_length says how many tokens of each beam count."""
        tokens = tensors["TOKENS_BATCH"]
        beams = tokens.reshape(-1, tokens.shape[-1])
        lengths = tensors["sequence_length"].reshape(-1).tolist()
        if len(lengths) != len(beams) or any(length > beams.shape[1] for length in lengths):
            raise RequestError(f"sequence_length is {lengths} for {len(beams)} beams of {beams.shape[1]} tokens; "
                               "send one length per beam, not beyond its tokens")
        skips = bool(Inputs(tensors).scalar("skip_special_tokens", 1))
        texts = [(await read_text(length, self._tokenizer.decode, beam[:length].tolist(), skips)).encode()
                 for beam, length in zip(beams, lengths, strict=True)]
        yield {"OUTPUT": np.array([texts], object).reshape(1, -1)}
