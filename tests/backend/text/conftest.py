"""Folders with prepared tokenizers: SentencePiece with and without dummy prefix, byte-level, and the demo model's."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.text.tokenizer import Tokenizer
from converter.tokenizer import prepare_tokenizer
from tests.tiny_tokenizers import sentencepiece_model, write_byte_level_folder, write_sentencepiece_folder

DEMO = Path(__file__).parents[3] / "demo/checkpoint"
KINDS = ("dummy prefix", "no prefix", "collapsed spaces", "byte level", "demo")


@pytest.fixture(scope="session", params=KINDS)
def tokenizer_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind in turn."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    if request.param == "demo":
        source = DEMO
    elif request.param == "byte level":
        write_byte_level_folder(source)
    else:
        write_sentencepiece_folder(source, sentencepiece_model(
            add_dummy_prefix=request.param != "no prefix",
            remove_extra_whitespaces=request.param == "collapsed spaces"))
    prepare_tokenizer(source, target, None)
    return target


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer(tokenizer_dir)


@pytest.fixture(scope="session")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """SentencePiece with a dummy prefix."""
    source = write_sentencepiece_folder(tmp_path_factory.mktemp("source"), sentencepiece_model())
    prepare_tokenizer(source, source / "target", None)
    return Tokenizer(source / "target")
