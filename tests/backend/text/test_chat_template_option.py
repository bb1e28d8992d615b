from __future__ import annotations

import json

import pytest

from backend.chat_templates import builtin_template
from backend.errors import TemplateError
from backend.text.chat_template_option import read_chat_template
from converter.tokenizer import prepare_tokenizer
from tests.backend.text.conftest import DEMO

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Bye"}]
PIECES = {"system": "<S>", "eosys": "</S>\n", "user": "<U>", "eoh": "</U>\n", "assistant": "<A>", "eoa": "</A>",
          "separator": "\n", "stop_words": ["</A>"]}
RENDERED = "<U>Hi</U>\n<A>Yes?</A>\n<U>Bye</U>\n<A>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("tokenizer")
    prepare_tokenizer(DEMO, target, None)
    return target


@pytest.mark.parametrize("as_file", [False, True])
def test_lmdeploy_s_json_says_what_stands_around_messages(as_file, folder, tmp_path):
    text = json.dumps({"model_name": "mine", "meta_instruction": "Be 'brief'.\n", **PIECES})
    if as_file:
        (tmp_path / "mine.json").write_text(text)
        text = str(tmp_path / "mine.json")
    template = read_chat_template(text, folder)
    assert template.render(TALK) == "<s><S>Be 'brief'.\n</S>\n" + RENDERED
    assert template.render([{"role": "system", "content": "x"}, *TALK]) == "<s><S>x</S>\n" + RENDERED
    assert template.stop == ("</A>",)


def test_a_built_in_template_may_be_given_its_system_message(folder):
    plain = read_chat_template("internlm2", folder)
    told = read_chat_template('{"model_name": "internlm2", "meta_instruction": "Be brief."}', folder)
    assert told.render(TALK) == plain.render([{"role": "system", "content": "Be brief."}, *TALK])
    assert plain.stop == told.stop == builtin_template("internlm2").stop


def test_a_file_of_jinja_is_a_template(folder, tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}")
    assert read_chat_template(str(tmp_path / "mine.jinja"), folder).render(TALK) == "[Hi][Yes?][Bye]"


@pytest.mark.parametrize("option, line", [
    ("no-such-model", "no chat template is known"),
    ("{oh", "is neither a file nor JSON"),
    ('{"model_name": "internlm2", "usr": "x"}', "usr is not known"),
    ('{"user": "x"}', "user and assistant are missing"),
    ('{"user": 1}', "user is no text"),
    ('{"stop_words": "x"}', "stop_words is no list"),
    ('{"capability": "voice"}', "use chat"),
    ("{}", "is no object"),
])
def test_what_is_no_template_is_refused_in_one_line(option, line, folder):
    with pytest.raises(TemplateError, match=line):
        read_chat_template(option, folder)
