"""Byte-level tokenizers without tokenizer.json: Llama 3's rank file, and vocab.json with merges.txt (GPT-2, Qwen).

Both become a byte-level BPE of the `tokenizers` library. How text is cut before merging is in neither file, so it is
known here per model. Used by converter/tokenizer.py."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from backend.errors import TokenizerError
from backend.tokenizer_files import BYTE_LETTERS, TOKENIZER_CONFIG, TokenizerSettings

# How GPT-4's successors cut text before merging; Llama 3 takes up to three digits at once, Qwen one.
_CUT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_LLAMA3_CUT = _CUT.format(digits="{1,3}")
_QWEN_CUT = _CUT.format(digits="")

# Llama 3 and 3.1 append 256 special tokens to the ranks. The ones that 3.1 gave a meaning were reserved in 3.
_LLAMA3_NUM_SPECIAL = 256
_LLAMA3_SPECIAL = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>",
                   6: "<|start_header_id|>", 7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>",
                   10: "<|python_tag|>"}


def looks_like_ranks(file: Path) -> bool:
    """Whether a tokenizer.model is a list of `base64 rank` lines rather than a SentencePiece model."""
    with file.open("rb") as opened:
        parts = opened.readline(4096).split()
    return len(parts) == 2 and parts[1].isdigit() and _is_base64(parts[0])


def build_from_ranks(file: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer of a Meta Llama 3 folder, and its special tokens. Raises TokenizerError for a damaged file."""
    try:
        ranks = {base64.b64decode(token, validate=True): int(rank)
                 for token, rank in (line.split() for line in file.read_bytes().splitlines() if line)}
    except (ValueError, binascii.Error) as error:
        raise TokenizerError(f"{file} is damaged ({error}); fetch it again") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"{file} does not number its {len(ranks)} tokens from 0 without a gap; fetch it again")
    letters = {byte: letter for letter, byte in BYTE_LETTERS.items()}
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in by_rank}
    merges = [(left, right) for token in vocabulary for left, right in _halves(token, vocabulary)]
    special = [_LLAMA3_SPECIAL.get(index, "") for index in range(_LLAMA3_NUM_SPECIAL)]
    reserved = iter(range(_LLAMA3_NUM_SPECIAL))
    special = [text or f"<|reserved_special_token_{next(reserved)}|>" for text in special]
    tokenizer = _byte_level(vocabulary, merges, _LLAMA3_CUT, ignore_merges=True)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[special[0], "$A"], special_tokens=[(special[0], tokenizer.token_to_id(special[0]))])
    return tokenizer, {"bos_token": special[0], "eos_token": special[1]}


def build_from_vocab(folder: Path, settings: TokenizerSettings) -> tokenizers.Tokenizer:
    """The tokenizer of vocab.json and merges.txt. Raises TokenizerError for damaged files or an unknown class."""
    try:
        vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        is_qwen = (settings.tokenizer_class or "").startswith("Qwen2Tokenizer")
        if not is_qwen and not (settings.tokenizer_class or "").startswith("GPT2Tokenizer"):
            raise TokenizerError(f"{folder / TOKENIZER_CONFIG}: tokenizer_class={settings.tokenizer_class!r} is not "
                                 "supported without tokenizer.json; supported are Qwen2Tokenizer and GPT2Tokenizer")
        tokenizer = _byte_level(vocabulary, merges, _QWEN_CUT if is_qwen else None)
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{folder}: vocab.json and merges.txt do not agree or are damaged ({error})") from None
    if is_qwen:
        tokenizer.normalizer = normalizers.NFC()
    for token_id, (text, is_special) in sorted(settings.added_tokens.items()):
        add = tokenizer.add_special_tokens if is_special else tokenizer.add_tokens
        add([AddedToken(text, normalized=False, special=is_special)])
        if tokenizer.token_to_id(text) != token_id:
            raise TokenizerError(f"{folder}: {text!r} should have id {token_id}, but the vocabulary before it ends at "
                                 f"{tokenizer.token_to_id(text)}; take all files from the same checkpoint")
    return tokenizer


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], cut: str | None,
                ignore_merges: bool = False) -> tokenizers.Tokenizer:
    """cut: the pattern of one word; None is GPT-2's, which the library has built in."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
    tokenizer.pre_tokenizer = bytes_only if cut is None else pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(cut), "isolated"), bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _halves(token: str, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The ways to make a token of two others, the earlier others first. Ranks follow the result, so order by it."""
    pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))
             if token[:cut] in vocabulary and token[cut:] in vocabulary]
    return sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))


def _is_base64(text: bytes) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except binascii.Error:
        return False
