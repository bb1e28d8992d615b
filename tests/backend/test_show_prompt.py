from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from backend import show_prompt
from backend.errors import TemplateError
from backend.text.tokenizer import Tokenizer
from tests.tiny_tokenizers import write_byte_level_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_byte_level_folder(tmp_path)
    monkeypatch.setattr(show_prompt, "open_model", lambda path, model_name: SimpleNamespace(tokenizer_dir=tmp_path))
    return tmp_path


def show(*arguments: str) -> str:
    result = CliRunner().invoke(show_prompt.main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_text_and_ids_of_a_conversation_are_printed(folder):
    output = show("chatml", "anywhere", "--system", "Be brief.", "Hello", "Hi", "从前")
    text = ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
            "Hi<|im_end|>\n<|im_start|>user\n从前<|im_end|>\n<|im_start|>assistant\n")
    ids = Tokenizer(folder).encode(text)
    assert output.startswith(text)
    assert f"{len(ids)} tokens, from the built-in template 'chatml'; an answer ends at '<|im_end|>'" in output
    assert [int(entry.split(":")[0]) for entry in output.splitlines()[-1].split(" ")] == ids


def test_tools_come_from_a_file(folder):
    file = folder / "tools.json"
    file.write_text(json.dumps([{"type": "function", "function": {"name": "add"}}]))
    assert '[{"name": "add"}]' in show("internlm2", "anywhere", "--tools", str(file), "2 + 3?")
    file.write_text("{}")
    with pytest.raises(TemplateError, match="holds a dict; give a list of tools"):
        show("internlm2", "anywhere", "--tools", str(file), "2 + 3?")
    file.write_text("[1, 2]")
    with pytest.raises(TemplateError, match=r"tools\[0\] is a int; give an object"):
        show("internlm2", "anywhere", "--tools", str(file), "2 + 3?")


def test_help_has_an_example():
    assert "python -m backend.show_prompt internlm2 ./workspace" in show("--help")
