from __future__ import annotations

import pytest
from sentencepiece import SentencePieceProcessor

from backend.errors import TokenizerError
from converter.sentencepiece_model import PieceType, parse_sentencepiece
from converter.tokenizer import prepare_tokenizer
from tests.tiny_tokenizers import sentencepiece_model


def test_pieces_and_settings_are_read_as_sentencepiece_reads_them():
    data = sentencepiece_model(False, True, ("<eoh>",), control_symbols="<ctl>")
    model, reference = parse_sentencepiece(data, "tokenizer.model"), SentencePieceProcessor(model_proto=data)
    assert [piece.text for piece in model.pieces] == [reference.id_to_piece(i) for i in range(len(model.pieces))]
    assert [piece.score for piece in model.pieces] == [reference.get_score(i) for i in range(len(model.pieces))]
    assert all((piece.type is PieceType.BYTE) == reference.is_byte(i) for i, piece in enumerate(model.pieces))
    assert all((piece.type is PieceType.CONTROL) == reference.is_control(i) for i, piece in enumerate(model.pieces))
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces, model.byte_fallback) == (False, True, True)
    assert (model.unk_id, model.bos_id, model.eos_id) == (reference.unk_id(), reference.bos_id(), reference.eos_id())


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, b"version https://git-lfs", sentencepiece_model()[:5000],
                                  sentencepiece_model()[:-1]])
def test_a_damaged_model_file_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"fetch it again|fetch the file again|differs") as error:
        prepare_tokenizer(tmp_path, tmp_path / "target", None)
    assert "\n" not in str(error.value)
