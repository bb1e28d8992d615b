from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.text.detokenizer import Detokenizer

PROPERTY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.lists(
    st.sampled_from(["the fox", " ", "\n", "从前", "😀", "👩‍👩‍👧", "é", "<|im_end|>", "  "])).map("".join)


def any_ids(tokenizer):
    """Ids in any order, mostly bytes of characters that may never be finished, or those of a text."""
    some = st.integers(0, tokenizer.vocab_size - 1)
    return st.lists(some | st.integers(3, 259), max_size=30) | TEXTS.map(tokenizer.encode)


def cut(ids, borders):
    borders = [0, *sorted(min(border, len(ids)) for border in borders), len(ids)]
    return [ids[start:end] for start, end in itertools.pairwise(borders)]


@PROPERTY
@given(data=st.data(), borders=st.lists(st.integers(0, 30), max_size=5), skip=st.booleans())
def test_pieces_joined_are_the_text_decoded_at_once(tokenizer, data, borders, skip):
    ids = data.draw(any_ids(tokenizer))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    pieces = [detokenizer.push(part) for part in cut(ids, borders)]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens=skip)


@PROPERTY
@given(data=st.data())
def test_one_token_at_a_time_gives_out_only_final_text(tokenizer, data):
    ids = data.draw(any_ids(tokenizer))
    detokenizer, text = Detokenizer(tokenizer), ""
    whole = tokenizer.decode(ids)
    for token_id in ids:
        text += detokenizer.push([token_id])
        assert whole.startswith(text)


@PROPERTY
@given(prompt=TEXTS, answer=TEXTS)
def test_prompt_and_answer_joined_are_the_text_decoded_at_once(tokenizer, prompt, answer):
    prompt_ids, ids = tokenizer.encode(prompt + "."), tokenizer.encode(answer)
    detokenizer = Detokenizer(tokenizer, prompt_ids=prompt_ids)
    text = "".join(detokenizer.push([token_id]) for token_id in ids) + detokenizer.flush()
    assert tokenizer.decode(prompt_ids) + text == tokenizer.decode(prompt_ids + ids)


def test_a_character_in_byte_pieces_comes_out_whole(prefixed):
    ids = prefixed.encode("😃")[1:]
    assert len(ids) == 4
    detokenizer = Detokenizer(prefixed)
    assert [detokenizer.push([token_id]) for token_id in ids] == ["", "", "", "😃"]
    assert detokenizer.flush() == ""


def test_a_character_that_the_prompt_began_is_finished(prefixed):
    ids = prefixed.encode("😃")
    assert Detokenizer(prefixed, prompt_ids=ids[:-1]).push(ids[-1:]) == "😃"


def test_an_unfinished_character_is_given_out_at_the_end(prefixed):
    detokenizer = Detokenizer(prefixed)
    assert detokenizer.push(prefixed.encode("a😃")[:-1]) == "a"
    assert detokenizer.flush() == "\ufffd"


def test_the_first_space_is_kept_only_after_a_prompt(prefixed):
    ids = prefixed.encode("the fox")
    assert Detokenizer(prefixed).push(ids) == "the fox"
    assert Detokenizer(prefixed, prompt_ids=prefixed.encode("and")).push(ids) == " the fox"


def test_a_prompt_of_special_tokens_alone_is_no_text_before(prefixed):
    ids = prefixed.encode("the fox")
    assert Detokenizer(prefixed, prompt_ids=[1]).push(ids) == prefixed.decode([1, *ids]) == "the fox"


def test_an_id_beyond_the_vocabulary_adds_nothing(prefixed):
    assert Detokenizer(prefixed).push([*prefixed.encode("fox"), prefixed.vocab_size + 7]) == "fox"
