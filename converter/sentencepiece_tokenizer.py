"""SentencePiece tokenizers: a BPE `tokenizer.model` as a tokenizer of the `tokenizers` library, checked against it.

The merges follow from the pieces' scores; the rest from the model file's settings and from the ids that the checkpoint
renames. transformers' own conversion is not used: version 5 drops the dummy prefix, and cuts a text that starts with a
space otherwise than SentencePiece. Used by converter/tokenizer.py."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors

from backend.errors import TokenizerError
from backend.tokenizer_files import TOKENIZER_CONFIG, TokenizerSettings
from converter.sentencepiece_model import BPE, PieceType, SentencePieceModel

NUM_CHECKED_STRINGS = 2500
# SentencePiece 0.2.3 keeps a piece "\x00" (InternLM has one) but never finds it in text: the byte piece is taken. Two
# characters that no merge joins are never found either.
_UNMATCHED_NULL = "\x00\x00"


def build_from_sentencepiece(model: SentencePieceModel, settings: TokenizerSettings,
                             name: str) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A `tokenizers` BPE that cuts text as the SentencePiece model does, and the model's own special tokens.

    Ids that settings.added_tokens names get those texts (InternLM2 renames `[UNUSED_TOKEN_…]` to `<|im_start|>` …).
    Raises TokenizerError for a model that is no BPE."""
    if model.model_type != BPE or model.treat_whitespace_as_suffix or not model.escape_whitespaces:
        raise TokenizerError(f"{name} is no SentencePiece BPE model with spaces in front of words; "
                             "use a checkpoint that brings tokenizer.json")
    if model.has_charsmap:
        # The library's Precompiled normaliser looks up whole grapheme clusters, SentencePiece the longest match: they
        # differ on "\r\n" and on combining marks.
        raise TokenizerError(f"{name} normalises text with a table (nmt_nfkc or the like), which tokenizer.json cannot "
                             "say exactly; use a model trained with normalization_rule_name=identity, or a checkpoint "
                             "that brings tokenizer.json")
    texts = {token_id: _UNMATCHED_NULL if piece.text == "\x00" else piece.text
             for token_id, piece in enumerate(model.pieces)}
    texts.update({token_id: text for token_id, (text, _) in settings.added_tokens.items()})
    vocabulary = {text: token_id for token_id, text in texts.items()}
    if len(vocabulary) != len(texts):
        twice = next(text for token_id, text in texts.items() if vocabulary[text] != token_id)
        raise TokenizerError(f"{name} and {TOKENIZER_CONFIG} give {twice!r} two ids; take both from one checkpoint")
    unknown = texts.get(model.unk_id)
    tokenizer = tokenizers.Tokenizer(models.BPE(
        vocabulary, _merges(model, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback))
    special, user_defined = _added_tokens(model, settings, texts)
    tokenizer.normalizer = _normalizer(model, user_defined)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        *([decoders.Strip(" ", _leading_spaces(model), 0)] if _leading_spaces(model) else [])])
    # A user-defined piece is found after normalisation, inside its text; a special token cuts the text before it.
    tokenizer.add_tokens([AddedToken(text, normalized=True, special=False) for text in user_defined])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    ids = {"unk_token": model.unk_id, "bos_token": model.bos_id, "eos_token": model.eos_id}
    named = {role: texts[token_id] for role, token_id in ids.items() if token_id in texts}
    _add_post_processor(tokenizer, settings, {**named, **settings.special_tokens})
    return tokenizer, named


def _merges(model: SentencePieceModel, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that together are a piece, best result first: SentencePiece joins by the result's score.

    Pairs with the same result tie; the longer left part comes first, because SentencePiece joins from the left."""
    scores = {piece.text: piece.score for piece in model.pieces
              if piece.type is PieceType.NORMAL and piece.text in vocabulary}
    merges = [(-score, -cut, text[:cut], text[cut:]) for text, score in scores.items()
              for cut in range(1, len(text)) if text[:cut] in scores and text[cut:] in scores]
    merges.sort(key=lambda merge: (merge[0], vocabulary[merge[2] + merge[3]], merge[1]))
    return [(left, right) for _, _, left, right in merges]


def _added_tokens(model: SentencePieceModel, settings: TokenizerSettings,
                  texts: dict[int, str]) -> tuple[list[str], list[str]]:
    """(special tokens, user-defined ones), in the order of their ids."""
    special_texts = {*settings.special_tokens.values(), *settings.additional_special_tokens}
    special, user_defined = [], []
    for token_id, text in sorted(texts.items()):
        kind = model.pieces[token_id].type if token_id < len(model.pieces) else None
        _, is_special = settings.added_tokens.get(token_id, (text, False))
        if is_special or text in special_texts or kind in (PieceType.CONTROL, PieceType.UNKNOWN):
            special.append(text)
        elif token_id in settings.added_tokens or kind is PieceType.USER_DEFINED:
            user_defined.append(text)
    return special, user_defined


def _normalizer(model: SentencePieceModel, user_defined: Sequence[str]) -> normalizers.Normalizer:
    """SentencePiece's steps in its order: spaces collapsed, dummy prefix, spaces made visible."""
    steps: list[normalizers.Normalizer] = []
    if model.remove_extra_whitespaces:
        # A mark that is written in the text itself counts as a space at the end, but not at the start.
        steps += [normalizers.Replace(Regex(r"\A +|[ ▁]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix and user_defined:
        # The library normalises user-defined pieces too, before it looks for them: those must stay as they are. So a
        # text that is nothing but such a piece gets no prefix, unlike in SentencePiece.
        pieces = "|".join(re.escape(text) for text in user_defined)
        steps.append(normalizers.Replace(Regex(rf"\A(?!(?:{pieces})\z)(?=[\s\S])"), "▁"))
    elif model.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _leading_spaces(model: SentencePieceModel) -> int:
    """Spaces that SentencePiece drops from the start of decoded text, at most."""
    return 2**16 if model.remove_extra_whitespaces else int(model.add_dummy_prefix)


def _add_post_processor(tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings, special: dict[str, str]) -> None:
    """BOS and EOS as the checkpoint's tokenizer adds them by itself; a SentencePiece one adds BOS unless told."""
    bos = special.get("bos_token") if settings.add_bos is not False else None
    eos = special.get("eos_token") if settings.add_eos else None
    names = [text for text in (bos, eos) if text]
    if names:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
            special_tokens=[(text, tokenizer.token_to_id(text)) for text in names])


def check_against_sentencepiece(tokenizer: tokenizers.Tokenizer, model: SentencePieceModel, model_file: Path) -> None:
    """Encode and decode fuzzed strings with both. Raises TokenizerError that names the first string that differs."""
    try:
        reference = SentencePieceProcessor(model_file=str(model_file))
    except (RuntimeError, OSError) as error:
        raise TokenizerError(f"SentencePiece cannot load {model_file} ({error}); "
                             "use sentencepiece >= 0.2.3, which takes a \\x00 piece, or fetch the file again") from None
    texts = fuzzed_texts(model, tokenizer, NUM_CHECKED_STRINGS)
    expected_ids = reference.encode(texts)
    actual_ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    expected_texts = reference.decode(expected_ids)
    actual_texts = tokenizer.decode_batch(actual_ids, skip_special_tokens=False)
    for text, want, have, want_text, have_text in zip(texts, expected_ids, actual_ids, expected_texts, actual_texts,
                                                      strict=True):
        has_unknown = model.unk_id in want  # SentencePiece prints it as ⁇, tokenizers as <unk>
        if want != have or (want_text != have_text and not has_unknown):
            raise TokenizerError(f"the tokenizer built from {model_file} differs from SentencePiece on {text!r}: "
                                 f"{have} {have_text!r} instead of {want} {want_text!r}; "
                                 "use a checkpoint that brings tokenizer.json")


def fuzzed_texts(model: SentencePieceModel, tokenizer: tokenizers.Tokenizer, count: int) -> list[str]:
    """Strings of every sort that breaks tokenizers, the same on every run. They hold no special token and are no
    user-defined piece alone: those we read otherwise, on purpose."""
    chance = random.Random(0)
    vocabulary = tokenizer.get_vocab()
    pieces = [piece.text.replace("▁", " ") for piece in model.pieces
              if piece.type is PieceType.NORMAL and piece.text in vocabulary]
    user_defined = [piece.text for piece in model.pieces
                    if piece.type is PieceType.USER_DEFINED and piece.text in vocabulary]
    words = _WORDS.split(" ")
    sources = [
        pieces, pieces, words, words, [" ", "  ", "   ", " " * 17], ["\n", "\n\n", "\t", "\r\n", "\u3000", "\u00a0"],
        [chr(code) for code in (*range(0x20), 0x7F, 0x85, 0x200B, 0x200D, 0xFE0F, 0xFEFF, 0x2581)],
        [chr(code) for code in range(0x20, 0x7F)], *([user_defined] if user_defined else []),
    ]
    known = {piece.text for piece in model.pieces}
    avoided = [token.content for token in tokenizer.get_added_tokens_decoder().values()
               if token.special or token.content not in known]
    avoided += [text for text in known if text not in vocabulary]  # the old names of renamed ids
    texts = ["", " ", "  ", "\n", " a", "  a", "a ", "a  b", "\x00", "▁", " \n ", "hello world", "你好，世界"]
    while len(texts) < count:
        parts = [chance.choice(chance.choice(sources)) if chance.random() < 0.9 else _any_character(chance)
                 for _ in range(chance.randint(1, 12))]
        text = chance.choice(("", " ")).join(parts)
        if not any(token in text for token in avoided) and text.strip(" ▁") not in user_defined:
            texts.append(text)
    return texts


def _any_character(chance: random.Random) -> str:
    code = chance.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)  # surrogates are no characters


_WORDS = (
    "the quick brown fox jumps over the lazy dog , . ! ? isn't I'm 3.14159 1234567 http://example.com/a?b=c&d "
    "def f(x): return x+1 if(a==b){c++;} <div class=\"x\"> #include <stdio.h> __init__ \\n \\t %s {} [] snake_case "
    "从前 有一只狐狸 和一只兔子 ， 。 你好 世界 人工智能 １２３ 東京 こんにちは カタカナ 안녕하세요 "
    "привет мир שלום مرحبا नमस्ते สวัสดี naïve Ελληνικά 𝔘𝔫𝔦 𠀀 <0x0A> "
    "😀 👩\u200d👩\u200d👧 🇨🇳 ❤\ufe0f é e\u0301 ﬁ Å ß ½ ² ™ … “ ” —"
)
