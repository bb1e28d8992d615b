"""Stand-in tokenizer: a byte-level vocabulary of any size, for shapes that have random weights and no tokenizer.

Used by structured_output.py. Its pieces are made of syllables, digits and JSON's punctuation, as many and as long as
those of published vocabularies; what they mean is nobody's concern."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from backend.tokenizer_files import BYTE_LETTERS

SYLLABLES = tuple(first + second + third for first in ("", *"bcdfghklmnprstvw") for second in "aeiou"
                  for third in ("", "n", "r", "s", "l", "t"))
PUNCTUATION = ('{"', '":', '",', '"}', '":"', '","', "],", "[{", "}]", '"]', '":[', "  ", "    ", "\n", "\n  ")
SPECIAL = ("<unk>", "<s>", "</s>")


def write_tokenizer(folder: Path, vocab_size: int) -> Path:
    """tokenizer.json and its configuration; the end id is 2, as the shapes have it."""
    letters = {byte: letter for letter, byte in BYTE_LETTERS.items()}
    words = itertools.chain(SYLLABLES, map("".join, itertools.product(SYLLABLES, repeat=2)))
    texts = itertools.chain(PUNCTUATION, map(str, range(10, 1000)),
                            itertools.chain.from_iterable((" " + word, word, word.title()) for word in words))
    pieces = itertools.chain(SPECIAL, letters.values(),
                             ("".join(letters[byte] for byte in text.encode()) for text in texts))
    vocabulary = {piece: number for number, piece in enumerate(
        itertools.islice(dict.fromkeys(pieces), vocab_size))}
    if len(vocabulary) < vocab_size:
        raise ValueError(f"there are {len(vocabulary)} pieces, fewer than {vocab_size}; add syllables")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": number, "content": text, "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False} for number, text in enumerate(SPECIAL)],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": True}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder
