"""Tab: turns of one browser tab over a fake session."""

from __future__ import annotations

from itertools import islice, pairwise

from backend.requests import SamplingParams
from client.webui.tab import Message, Settings, Tab, View
from tests.client.webui.fake_client import AWAY, SESSION_LEN, FakeClient


def last(views) -> View:
    return list(views)[-1]


def answers(view: View) -> list[str]:
    return [message.text for message in view.messages if message.role == "assistant"]


def test_answer_grows_and_ends():
    views = list(Tab(FakeClient(word_every_s=0.05)).ask("Hello", Settings()))
    texts = [answers(view)[0] for view in views]
    assert texts[0] == "" and texts[-1] == "Answer 1 to **Hello** in turn 1"
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert [view.is_answering for view in views] == [True] * (len(views) - 1) + [False]


def test_a_fast_answer_is_not_redrawn_for_every_part():
    views = list(Tab(FakeClient()).ask("word " * 2000, Settings()))
    assert len(views) < 100


def test_usage_is_that_of_the_last_part():
    usage = last(Tab(FakeClient(word_every_s=0.01)).ask("Hello", Settings())).usage
    assert (usage.num_completion_tokens, usage.num_session_tokens, usage.session_len) == (7, 8, SESSION_LEN)
    assert usage.finish_reason == "stop" and 0 < usage.tokens_per_s <= 100


def test_cancelled_answer_stays_and_the_next_turn_goes_on():
    client = FakeClient(word_every_s=0.01)
    tab = Tab(client)
    stream = tab.ask("a long one", Settings())
    list(islice(stream, 3))
    tab.cancel()
    view = last(stream)
    assert view.usage.finish_reason == "abort" and answers(view)[0].startswith("word1 ")
    assert last(tab.ask("Next", Settings())).messages[-2:] == (Message("user", "Next"),
                                                              Message("assistant", "Answer 2 to **Next** in turn 2"))
    assert client.sessions[0].turns[0] == ("a long one", answers(view)[0])


def test_cancel_without_an_answer_does_nothing():
    client = FakeClient()
    client.is_away = True
    Tab(client).cancel()


def test_retry_replaces_the_last_turn_only():
    client = FakeClient()
    tab = Tab(client)
    list(tab.ask("One", Settings()))
    list(tab.ask("Two", Settings()))
    view = last(tab.retry(Settings()))
    assert answers(view) == ["Answer 1 to **One** in turn 1", "Answer 3 to **Two** in turn 2"]
    assert [prompt for prompt, _ in client.sessions[0].turns] == ["One", "Two"]


def test_retry_without_a_turn_yields_nothing():
    assert list(Tab(FakeClient()).retry(Settings())) == []


def test_blank_prompt_and_a_second_turn_at_once_yield_nothing():
    tab = Tab(FakeClient())
    assert list(tab.ask(" \n", Settings())) == []
    running = tab.ask("One", Settings())
    next(running)
    assert list(tab.ask("Two", Settings())) == [] and list(tab.retry(Settings())) == []
    assert answers(last(running)) == ["Answer 1 to **One** in turn 1"]


def test_failed_turn_is_shown_and_can_be_retried_when_the_server_is_back():
    client = FakeClient()
    tab = Tab(client)
    list(tab.ask("One", Settings()))
    client.is_away = True
    failed = last(tab.ask("Two", Settings()))
    assert failed.problem == AWAY and answers(failed) == ["Answer 1 to **One** in turn 1", ""]
    client.is_away = False
    view = last(tab.retry(Settings()))
    assert view.problem == "" and answers(view)[-1] == "Answer 2 to **Two** in turn 2"


def test_turn_that_failed_half_way_gives_way_to_the_next_one():
    client = FakeClient(word_every_s=0.05)
    tab = Tab(client)
    stream = tab.ask("One", Settings())
    list(islice(stream, 3))
    client.is_away = True
    assert answers(last(stream))[0].startswith("Answer 1")
    client.is_away = False
    view = last(tab.ask("Two", Settings()))
    assert [message.text for message in view.messages] == ["Two", "Answer 2 to **Two** in turn 1"]


def test_session_that_the_server_lost_is_resumed_unasked():
    client = FakeClient()
    tab = Tab(client)
    list(tab.ask("One", Settings()))
    client.sessions[0].is_lost = True
    view = last(tab.ask("Two", Settings()))
    assert view.problem == "" and answers(view)[-1] == "Answer 2 to **Two** in turn 2"


def test_system_prompt_goes_with_the_first_turn_only():
    client = FakeClient()
    tab = Tab(client)
    list(tab.ask("One", Settings(system=" Be brief. ")))
    list(tab.ask("Two", Settings(system="Be long.")))
    assert [options["system"] for options in client.sessions[0].options] == ["Be brief.", None]


def test_settings_begin_as_the_defaults_of_every_entry_point():
    default, engine = Settings(), SamplingParams()
    assert (default.temperature, default.top_p, default.top_k, default.repetition_penalty) == (
        engine.temperature, engine.top_p, engine.top_k, engine.repetition_penalty)
    assert (default.max_new_tokens or None) == engine.max_new_tokens


def test_closing_ends_the_session_and_its_running_answer_shows_no_more():
    client = FakeClient(word_every_s=0.01)
    tab = Tab(client)
    stream = tab.ask("a long one", Settings())
    list(islice(stream, 3))
    tab.close()
    assert list(stream) == [] and client.sessions[0].is_ended
