from __future__ import annotations

import shutil

import pytest
from tokenizers import Tokenizer

from backend.errors import TemplateError, TokenizerError
from backend.tokenizer_files import read_settings
from converter.tokenizer import prepare_tokenizer
from tests.tiny_tokenizers import CHAT_TOKENS, sentencepiece_model, write_byte_level_folder, write_sentencepiece_folder


def test_special_tokens_that_only_the_model_names_are_written_down(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    info = prepare_tokenizer(tmp_path, tmp_path / "target", None)
    assert (info.bos_token_id, info.eos_token_id) == (1, 2)
    assert read_settings(tmp_path / "target").special_tokens["eos_token"] == "</s>"


def test_preparing_twice_gives_the_same_files(tmp_path):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model(), chat_template="{{ messages }}")
    prepare_tokenizer(source, tmp_path / "once", None)
    prepare_tokenizer(tmp_path / "once", tmp_path / "twice", None)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert read_settings(tmp_path / "twice").chat_templates == {"default": "{{ messages }}"}


def test_tokenizer_json_is_taken_as_published(tmp_path):
    source = write_byte_level_folder(tmp_path / "source")
    info = prepare_tokenizer(source, tmp_path / "target", None)
    assert (tmp_path / "target/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert info.bos_token_id is None
    assert info.eos_token_id == 1


def test_a_damaged_tokenizer_json_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        prepare_tokenizer(tmp_path, tmp_path / "target", None)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        prepare_tokenizer(tmp_path, tmp_path / "target", None)


def test_a_special_token_that_the_vocabulary_lacks_is_refused(tmp_path):
    source = write_byte_level_folder(tmp_path / "source", bos_token="<bos>")
    with pytest.raises(TokenizerError, match="names '<bos>', which the vocabulary does not have"):
        prepare_tokenizer(source, tmp_path / "target", None)


def test_an_unknown_model_name_is_refused_only_where_the_source_brings_no_template(tmp_path):
    source = write_byte_level_folder(tmp_path / "source")
    with pytest.raises(TemplateError, match=r"did you mean 'internlm2'\? known are .*vicuna"):
        prepare_tokenizer(source, tmp_path / "target", "internml2")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    prepare_tokenizer(source, tmp_path / "target", "internml2")
    assert read_settings(tmp_path / "target").chat_templates == {"default": "{{ messages }}"}


def test_no_python_of_a_checkpoint_is_copied(tmp_path):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model())
    (source / "tokenization_internlm2.py").write_text("raise SystemExit")
    prepare_tokenizer(source, tmp_path / "target", None)
    assert sorted(file.name for file in (tmp_path / "target").iterdir()) == [
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]


def test_the_prepared_folder_needs_only_tokenizer_json(tmp_path):
    source = write_sentencepiece_folder(tmp_path / "source", sentencepiece_model())
    prepare_tokenizer(source, tmp_path / "target", None)
    shutil.rmtree(source)
    (tmp_path / "target/tokenizer.model").unlink()
    tokenizer = Tokenizer.from_file(str(tmp_path / "target/tokenizer.json"))
    assert all(tokenizer.token_to_id(text) is not None for text in CHAT_TOKENS)
