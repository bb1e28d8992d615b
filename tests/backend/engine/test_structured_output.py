"""Grammars through the whole engine on the demo model: answers follow them, however they are scheduled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import LLM, SamplingParams
from backend.errors import RequestError
from backend.requests import FinishReason, GenerateRequest
from backend.text.grammar import choice_grammar, json_schema_grammar, regex_grammar

CHECKPOINT = Path(__file__).parents[3] / "demo" / "checkpoint"
OPTIONS = {"dtype": "float32", "device": "cpu", "session_len": 512, "max_batch_size": 12, "cache_max_entry_count": 80}
ASK = [{"role": "user", "content": "Tell me a story about a fox and a rabbit."}]
SCHEMA = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 20}, "age": {"type": "int", "minimum": 0, "maximum": 99},
    "friends": {"type": "array", "items": {"enum": ["fox", "rabbit", "owl"]}, "minItems": 1, "maxItems": 3}},
    "required": ["name", "age", "friends"], "additionalProperties": False}
JSON, REGEX = json_schema_grammar(SCHEMA), regex_grammar("([a-z]{3,8} ){4,9}end")
CHOICE = choice_grammar(["left", "up"])
GRAMMARS = [JSON, None, REGEX, JSON, CHOICE, None, regex_grammar("[a-z ]*"), JSON]


def sampling(grammar: str | None, seed: int = 0, **options: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.3 if seed % 2 else 0, "top_p": 0.95, "seed": seed, "max_new_tokens": 90,
                             "grammar": grammar, **options})


def follows(grammar: str, text: str) -> bool:
    if grammar == JSON:
        found = json.loads(text)
        return (list(found) == ["name", "age", "friends"] and len(found["name"]) <= 20 and 0 <= found["age"] <= 99
                and 1 <= len(found["friends"]) <= 3 and set(found["friends"]) <= {"fox", "rabbit", "owl"})
    return bool(re.fullmatch("([a-z]{3,8} ){4,9}end" if grammar == REGEX else "left|up", text))


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(CHECKPOINT, "internlm2", **OPTIONS) as model:
        yield model
        model.front_end.grammars.close()


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[str]:
    """The answer to each of GRAMMARS, computed by itself."""
    return [llm.chat(ASK, sampling(grammar, seed)).text for seed, grammar in enumerate(GRAMMARS)]


def together(llm: LLM) -> list[str]:
    ids = llm.front_end.chat_ids(ASK)
    requests = [llm.front_end.chat_sampling(sampling(grammar, seed)) for seed, grammar in enumerate(GRAMMARS)]
    return [completion.text for completion in llm.generate([ids] * len(requests), requests, show_progress=False)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grammar", [JSON, REGEX, CHOICE], ids=["json", "regex", "choice"])
def test_answers_follow_their_grammar_to_its_end(llm, grammar, seed):
    answer = llm.chat(ASK, sampling(grammar, seed))
    assert answer.finish_reason is FinishReason.STOP and follows(grammar, answer.text)


def test_rows_with_and_without_grammars_do_not_disturb_one_another(llm, alone):
    assert together(llm) == alone


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_preempted_rows_go_on_in_their_grammar(llm, alone, max_in_flight, monkeypatch):
    """Every third step somebody gives way, and is computed again in whatever row is free then."""
    monkeypatch.setattr(llm.engine.executor, "max_in_flight", max_in_flight)
    engine, ids = llm.engine, tuple(llm.front_end.chat_ids(ASK))
    for seed, grammar in enumerate(GRAMMARS):
        request = llm.front_end.chat_sampling(sampling(grammar, seed))
        engine.add_request(GenerateRequest(f"{max_in_flight}-{seed}", ids, request))
    texts: dict[str, str] = {}
    answers = {f"{max_in_flight}-{seed}": llm.front_end.answer(GenerateRequest("", ids, sampling(None)), True)
               for seed in range(len(GRAMMARS))}
    num_steps, num_preemptions = 0, engine.stats().num_preemptions
    while engine.has_work:
        for output in engine.step():
            text = answers[output.request_id].push(output).text
            texts[output.request_id] = texts.get(output.request_id, "") + text
        num_steps += 1
        if num_steps % 3 == 0 and engine.scheduler.running:
            engine.scheduler.preempt(engine.scheduler.running[num_steps % len(engine.scheduler.running)])
    assert engine.stats().num_preemptions - num_preemptions > 20
    assert [texts[f"{max_in_flight}-{seed}"] for seed in range(len(GRAMMARS))] == alone


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {"min_new_tokens": 80}, {"bad_words": ('"', "end", "left")}],
                         ids=str)
def test_a_complete_grammar_ends_the_answer_whatever_else_is_asked(llm, options):
    for grammar in (JSON, REGEX, CHOICE):
        answer = llm.chat(ASK, sampling(grammar, 3, **options))
        assert answer.finish_reason is FinishReason.STOP and follows(grammar, answer.text), answer.text


def test_end_ids_come_when_a_grammar_that_could_go_on_allows_them(llm):
    ends = llm.chat(ASK, sampling(regex_grammar("[A-Z][a-z ,.]*"), max_new_tokens=300))
    goes_on = llm.chat(ASK, sampling(regex_grammar("[A-Z][a-z ,.]*"), max_new_tokens=300, ignore_eos=True))
    assert ends.finish_reason is FinishReason.STOP
    assert goes_on.finish_reason is FinishReason.LENGTH and goes_on.text.startswith(ends.text)


def test_a_stop_text_and_too_few_tokens_cut_an_answer_in_its_grammar(llm):
    whole = llm.chat(ASK, sampling(JSON)).text
    assert llm.chat(ASK, sampling(JSON, stop=("age",))).text == whole[:whole.index("age")]
    cut = llm.chat(ASK, sampling(JSON, max_new_tokens=6))
    assert cut.finish_reason is FinishReason.LENGTH and whole.startswith(cut.text)


def test_a_session_goes_on_after_a_turn_with_a_grammar(llm):
    first = llm.chat(ASK, sampling(CHOICE), session_id=7)
    second = llm.chat([{"role": "user", "content": "Who are you?"}], sampling(JSON), session_id=7)
    assert follows(CHOICE, first.text) and follows(JSON, second.text)
    assert second.num_cached_tokens > 0
    llm.end_session(7)


def test_logprobs_of_constrained_tokens_are_of_the_raw_distribution(llm):
    answer = llm.chat(ASK, sampling(CHOICE, logprobs=3))
    assert len(answer.logprobs) == len(answer.token_ids)
    assert answer.logprobs[0].token_id not in dict(answer.logprobs[0].top)
    assert answer.logprobs[0].logprob < min(dict(answer.logprobs[0].top).values())


def test_a_grammar_that_does_not_work_is_refused_and_nothing_else(llm):
    with pytest.raises(RequestError, match='unknown name: "nothing"'):
        llm.chat(ASK, sampling("start: nothing"))
    assert not llm.engine.has_work


def test_a_grammar_that_fails_on_the_way_ends_its_own_request_alone(llm, alone, caplog):
    ids = tuple(llm.front_end.chat_ids(ASK))
    llm.engine.add_request(GenerateRequest("unchecked", ids, sampling("start: nothing")))
    llm.engine.add_request(GenerateRequest("other", ids, llm.front_end.chat_sampling(sampling(JSON))))
    outputs = []
    while llm.engine.has_work:
        outputs += llm.engine.step()
    failed = [output for output in outputs if output.request_id == "unchecked"]
    assert [(output.token_ids, output.finish_reason) for output in failed] == [((), FinishReason.LENGTH)]
    assert "unchecked ends after 0 tokens" in caplog.text
    found = [token_id for output in outputs if output.request_id == "other" for token_id in output.token_ids]
    assert llm.front_end.tokenizer.decode(found) == alone[0]
