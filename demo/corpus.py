"""Corpus: endless training conversations from a seed, and the held-out ones that are in the repository.

Owns how often each skill is trained and which conversations are held out: those whose hash says so, about one in
sixteen. Training skips them, so no conversation is in both, whatever the seeds.
Used by train.py (stream), tokenizer.py (text) and evaluate.py (held-out file).

    python -m demo.corpus                # writes demo/heldout.jsonl
    python -m demo.corpus --show 5       # prints training conversations
    python -m demo.corpus --sample 1000 conversations.jsonl     # writes them, to calibrate quantised formats on"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from demo.chance import chance
from demo.conversation import Conversation, Message, write_jsonl
from demo.dialogue import PLAIN_SKILLS, Dialogue
from demo.skills import recall, tools

HELDOUT_PATH = Path(__file__).parent / "heldout.jsonl"
HELDOUT_SEED = 20231107
HELDOUT_PER_SKILL = {
    "stories": 80,
    "small_talk": 30,
    "facts": 40,
    "arithmetic": 80,
    "counting": 30,
    "echo": 40,
    "unknown": 20,
    "recall": 120,
    "tools": 160,
}
MAX_HELDOUT_CHARACTERS = 2500  # leaves room for the answer within 2048 tokens
_SHARES = {
    "stories": 13,
    "small_talk": 7,
    "facts": 7,
    "arithmetic": 16,
    "counting": 4,
    "echo": 6,
    "unknown": 4,
    "recall": 17,
    "tools": 26,
}
SKILLS = tuple(_SHARES)


def training_conversations(seed: int) -> Iterator[Conversation]:
    """Conversations without end; the same seed gives the same ones, none of them held out."""
    rng = random.Random(seed)
    while True:
        conversation = make_conversation(rng, rng.choices(SKILLS, list(_SHARES.values()))[0])
        if not is_held_out(conversation):
            yield conversation


def heldout_conversations() -> list[Conversation]:
    """The evaluation set: for each skill its number of different conversations, all held out."""
    rng = random.Random(HELDOUT_SEED)
    chosen: dict[tuple[Message, ...], Conversation] = {}
    for skill, wanted in HELDOUT_PER_SKILL.items():
        target = len(chosen) + wanted
        while len(chosen) < target:
            conversation = make_conversation(rng, skill)
            if is_held_out(conversation) and _num_characters(conversation) <= MAX_HELDOUT_CHARACTERS:
                chosen.setdefault(conversation.messages, conversation)
    return list(chosen.values())


def is_held_out(conversation: Conversation) -> bool:
    """True for the conversations that training must not see, decided by a hash of all messages."""
    text = "\0".join(f"{message.role}\0{message.content}" for message in conversation.messages)
    return hashlib.sha256(text.encode()).digest()[0] < 16


def make_conversation(rng: random.Random, skill: str) -> Conversation:
    """A conversation whose last, checked answer is of `skill`, after some turns of anything."""
    if skill == "recall":
        return _recall(rng)
    if skill == "tools":
        return _tools(rng)
    dialogue = Dialogue(rng)
    for _ in range(_turns_before(rng)):
        dialogue.add_filler()
    exchange = PLAIN_SKILLS[skill](rng, dialogue.language)
    dialogue.add(exchange)
    return Conversation(skill, tuple(dialogue.messages), (), exchange.check)


def _recall(rng: random.Random) -> Conversation:
    """A fact, other turns (usually one to four, now and then more), and the question for it."""
    declared = tools.declare_some(rng) if chance(rng, 0.1) else []
    dialogue = Dialogue(rng, declared)
    kind = "name" if chance(rng, 0.25) else rng.choice(list(recall.FACTS[dialogue.language]))
    gap = _turns_before(rng) if chance(rng, 0.3) else rng.choice((1, 2, 2, 3, 3, 4))
    is_told = chance(rng, 0.85)
    if is_told:
        if chance(rng, 0.3):
            dialogue.add_filler()
        dialogue.add_tell(kind)
    for _ in range(gap):
        dialogue.add_filler(keep=recall.same_kind(kind))
    exchange = dialogue.ask(kind)
    dialogue.add(exchange)
    check = {**exchange.check, "turns_between": gap if is_told else None}
    return Conversation("recall", tuple(dialogue.messages), tuple(tool.schema for tool in declared), check)


def _tools(rng: random.Random) -> Conversation:
    """Tools are shown; the last turn uses one (half of the time it ends at the call) or, seldom, needs none."""
    declared = tools.declare_some(rng)
    dialogue = Dialogue(rng, declared)
    for _ in range(_turns_before(rng)):
        dialogue.add_filler()
    if chance(rng, 0.12):
        skills = ("small_talk", "facts", "stories", "arithmetic", "arithmetic", "unknown")
        exchange = dialogue.plain(rng.choice([skill for skill in skills if dialogue.answers_itself(skill)]))
    else:
        exchange = dialogue.with_tools()
        if chance(rng, 0.5):
            exchange = tools.up_to_call(exchange, rng.randrange(2))
    dialogue.add(exchange)
    return Conversation("tools", tuple(dialogue.messages), tuple(tool.schema for tool in declared), exchange.check)


def _num_characters(conversation: Conversation) -> int:
    return sum(len(message.content) for message in conversation.messages) + len(str(conversation.tools))


def _turns_before(rng: random.Random) -> int:
    if chance(rng, 0.03):
        return rng.randint(8, 40)  # long sessions, so that positions up to the model's limit are trained
    return rng.choice((0, 0, 0, 1, 1, 2, 3, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the held-out conversations, or show training conversations.")
    parser.add_argument("--show", type=int, metavar="N", help="print N training conversations and write nothing")
    parser.add_argument("--sample", nargs=2, metavar=("N", "FILE"),
                        help="write N training conversations to FILE instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the conversations shown or sampled")
    arguments = parser.parse_args()
    if arguments.sample is not None:
        count, file = arguments.sample
        write_jsonl(Path(file), itertools.islice(training_conversations(arguments.seed), int(count)))
        return
    if arguments.show is None:
        write_jsonl(HELDOUT_PATH, conversations := heldout_conversations())
        print(f"{len(conversations)} conversations in {HELDOUT_PATH}")
        return
    for conversation in itertools.islice(training_conversations(arguments.seed), arguments.show):
        print(f"--- {conversation.skill}  tools: {[tool['name'] for tool in conversation.tools]}")
        for message in conversation.messages:
            print(f"{message.role:>11}: {message.content}")


if __name__ == "__main__":
    main()
