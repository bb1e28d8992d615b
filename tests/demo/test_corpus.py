"""The corpus: deterministic, right by its own checks, and split cleanly."""

from __future__ import annotations

import itertools
from collections import Counter

from demo.checks import is_correct
from demo.conversation import read_jsonl
from demo.corpus import (
    HELDOUT_PATH,
    HELDOUT_PER_SKILL,
    heldout_conversations,
    is_held_out,
    main,
    training_conversations,
)

NUM_CONVERSATIONS = 1500


def some_training_conversations(seed: int):
    return list(itertools.islice(training_conversations(seed), NUM_CONVERSATIONS))


def test_the_same_seed_gives_the_same_conversations():
    assert some_training_conversations(5) == some_training_conversations(5)
    assert some_training_conversations(5) != some_training_conversations(6)


def test_every_conversation_passes_its_own_check():
    for conversation in some_training_conversations(1):
        assert conversation.messages[-1].role == "assistant"
        assert is_correct(conversation.check, conversation.answer), conversation


def test_an_answer_of_another_conversation_fails_the_check():
    conversations = [c for c in some_training_conversations(2) if c.skill in ("stories", "arithmetic", "recall")]
    pairs = [(a, b) for a, b in itertools.pairwise(conversations) if a.answer != b.answer]
    wrong = sum(not is_correct(a.check, b.answer) for a, b in pairs)
    assert wrong >= 0.97 * len(pairs)  # a name or a number may be in another answer by chance


def test_training_and_heldout_conversations_are_disjoint():
    heldout = {conversation.messages for conversation in read_jsonl(HELDOUT_PATH)}
    assert not any(conversation.messages in heldout for conversation in some_training_conversations(3))
    assert not any(is_held_out(conversation) for conversation in some_training_conversations(4))


def test_the_heldout_file_is_what_the_corpus_generates():
    heldout = read_jsonl(HELDOUT_PATH)
    assert heldout == heldout_conversations()
    assert Counter(conversation.skill for conversation in heldout) == HELDOUT_PER_SKILL
    assert all(is_held_out(conversation) for conversation in heldout)


def test_training_conversations_can_be_written_out(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["corpus", "--seed", "5", "--sample", "20", str(tmp_path / "some.jsonl")])
    main()
    assert read_jsonl(tmp_path / "some.jsonl") == some_training_conversations(5)[:20]
