"""Calibration text: each kind of file, the datasets of the cache, and a line for what cannot be read."""

from __future__ import annotations

import builtins
import functools
import gzip
import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest

from backend.errors import ConfigError
from converter.calibration_text import PIECE_CHARACTERS, TOKEN_CHARACTERS, read_calibration_text
from converter.dataset_cache import DATASETS

read = functools.partial(read_calibration_text, num_tokens=1 << 20)
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


@pytest.fixture
def hf_home(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache."""
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf"


def put(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_built_in_text_is_of_some_size_and_several_languages():
    text = read(None)
    whole = "".join(text.documents)
    assert text.is_built_in and len(whole.encode()) > 28_000
    assert all(part in whole for part in ("def ", "der", "从前", "昔々", "Однажды", "SELECT"))


def test_text_file_is_cut_into_pieces_at_line_ends(tmp_path):
    whole = "".join(f"line {number}\n" for number in range(40_000))
    documents = read(str(put(tmp_path, "book.txt", whole))).documents
    assert len(documents) == -(-len(whole) // PIECE_CHARACTERS)
    assert sorted(documents, key=whole.index) != list(documents)  # in random order
    assert "".join(sorted(documents, key=whole.index)) == whole


def test_json_lines_give_text_content_or_messages(tmp_path):
    records = lines({"text": "one", "id": 1}, {"content": "two"}, {"messages": CHAT}, {"text": ""})
    documents = read(str(put(tmp_path, "data.jsonl", records))).documents
    assert len(documents) == 3 and all(document in documents for document in ("one", "two", CHAT))


def test_packed_json_lines_are_read(tmp_path):
    file = tmp_path / "data.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.write(lines({"text": "packed"}))
    assert list(read(str(file)).documents) == ["packed"]


def test_parquet_is_read(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["one", "", "two"], "other": [1, 2, 3]}), tmp_path / "data.parquet")
    assert sorted(read(str(tmp_path / "data.parquet")).documents) == ["one", "two"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ConfigError, match=r"bad.parquet is damaged or no \.parquet file"):
        read(str(tmp_path / "bad.parquet"))


def test_arrow_files_of_the_datasets_library_are_read(hf_home):
    arrow = pytest.importorskip("pyarrow")
    folder = hf_home / "datasets" / "ptb_text_only" / "penn_treebank" / "1.1.0" / "abc"
    folder.mkdir(parents=True)
    table = arrow.table({"sentence": ["a b", "c d"]})
    file = str(folder / "ptb_text_only-train.arrow")
    with arrow.OSFile(file, "wb") as sink, arrow.RecordBatchStreamWriter(sink, table.schema) as writer:
        writer.write_table(table)
    assert sorted(read("ptb").documents) == ["a b", "c d"]


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "data.parquet").touch()
    for name in [name for name in sys.modules if name.startswith("pyarrow")]:
        monkeypatch.delitem(sys.modules, name)
    original = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name: original("a package that is not there"))
    with pytest.raises(ConfigError, match=r"needs pyarrow, which is not installed; run: pip install -e '\.\[calib"):
        read(str(tmp_path / "data.parquet"))


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.csv", "x", "is of no kind that can be read"),
    ("a.txt", "  \n", "is empty; give a longer text"),
    ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: no JSON"),
    ("b.jsonl", lines({"prompt": "x"}), "one object a line, needs one of the fields text, content"),
    ("b.json", '[{"text": "x"}]', "in .json and .jsonl one object a line"),
])
def test_a_file_that_does_not_do_is_a_line(name, text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read(str(put(tmp_path, name, text)))


def test_a_text_that_is_not_utf_8_is_a_line(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.txt is not UTF-8 text"):
        read(str(tmp_path / "latin.txt"))


def test_an_unknown_name_lists_what_is_known():
    with pytest.raises(ConfigError, match="ptb, wikitext2, c4, pileval"):
        read("wikitext")


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_is_not_there_says_where_and_how(name, hf_home):
    with pytest.raises(ConfigError, match=f"{hf_home}/hub and .*; fetch it with `hf download .* --repo-type dataset"):
        read(name)


def test_the_newest_snapshot_of_a_dataset_is_read(hf_home):
    snapshots = hf_home / "hub" / "datasets--mit-han-lab--pile-val-backup" / "snapshots"
    put(snapshots / "old", "val.jsonl", lines({"text": "old"}))
    put(snapshots / "new", "val.jsonl", lines({"text": "new"}))
    os.utime(snapshots / "old", (1, 1))
    assert list(read("pileval").documents) == ["new"]


def test_one_file_of_c4_is_enough(hf_home):
    folder = hf_home / "hub" / "datasets--allenai--c4" / "snapshots" / "abc" / "en"
    folder.mkdir(parents=True)
    for number in range(2):
        with gzip.open(folder / f"c4-train.{number:05d}-of-01024.json.gz", "wt") as stream:
            stream.write(lines({"text": f"file {number}"}))
    assert list(read("c4").documents) == ["file 0"]


def test_hf_hub_cache_is_obeyed(tmp_path, hf_home, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    put(tmp_path / "elsewhere" / "datasets--mit-han-lab--pile-val-backup" / "snapshots" / "a", "val.jsonl",
        lines({"text": "here"}))
    assert list(read("pileval").documents) == ["here"]


def test_zstandard_is_unpacked(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "val.jsonl.zst").write_bytes(zstandard.compress(lines({"text": "packed"}).encode()))
    assert list(read(str(tmp_path / "val.jsonl.zst")).documents) == ["packed"]


def write_lines(file: Path) -> None:
    with file.open("w") as stream:
        for number in range(2000):
            stream.write(json.dumps({"text": f"{number:05d}" * 2000}) + "\n")


def write_text(file: Path) -> None:
    with file.open("w") as stream:
        for number in range(2000):
            stream.write(f"{number:05d}" * 2000 + "\n")


@pytest.mark.parametrize(("suffix", "write"), [("jsonl", write_lines), ("txt", write_text)])
def test_of_a_large_file_no_more_than_a_sample_is_in_memory(suffix, write, tmp_path):
    file = tmp_path / f"large.{suffix}"
    write(file)
    assert file.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        documents = read_calibration_text(str(file), num_tokens=200_000 // TOKEN_CHARACTERS).documents
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 200_000 <= sum(map(len, documents)) < 200_000 + PIECE_CHARACTERS
    assert peak < 1_200_000  # the sample, a piece, and what reading them takes


def test_a_sample_is_of_the_whole_file_and_always_the_same(tmp_path):
    file = str(put(tmp_path, "data.jsonl", lines(*({"text": f"{number:032d}"} for number in range(3000)))))
    documents = read_calibration_text(file, 300).documents
    numbers = sorted(map(int, documents))
    assert len(set(numbers)) == 300 and [*map(int, documents)] != numbers
    thirds = [sum(number // 1000 == third for number in numbers) for third in range(3)]
    assert min(thirds) > 75
    assert read_calibration_text(file, 300).documents == documents


def test_a_sample_of_short_documents_has_no_more_of_them_than_tokens_are_wanted(tmp_path):
    file = str(put(tmp_path, "data.jsonl", lines(*({"text": "x"} for _ in range(100)))))
    assert len(read_calibration_text(file, 20).documents) == 20


def test_a_sample_of_conversations_is_measured_by_what_they_say(tmp_path):
    chat = [{"role": "user", "content": "x" * 64}]
    file = str(put(tmp_path, "data.jsonl", lines(*({"messages": chat} for _ in range(100)))))
    assert len(read_calibration_text(file, 20).documents) == 10
