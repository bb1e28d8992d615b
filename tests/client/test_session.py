"""Sessions: turns, cancelling, taking back, resuming, and what every failure leaves behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from client import (
    ChatClient,
    DeadlineError,
    RequestRefusedError,
    ServerAwayError,
    ServerFailedError,
    SessionFullError,
    SessionLostError,
)
from protocol.status import StatusCode


def test_an_answer_streams_in_increments_and_the_last_one_says_why_it_ended(client):
    parts = list(client.session().stream("hello there"))
    assert "".join(part.text for part in parts) == "I heard 1: hello there "
    assert [part.finish_reason for part in parts] == [None] * 4 + ["stop"]
    assert [part.status for part in parts] == [StatusCode.STREAM_ING] * 4 + [StatusCode.STREAM_END]
    assert parts[-1].num_completion_tokens == 5


def test_the_second_turn_sends_only_its_own_message(client, server):
    session = client.session(7)
    session.infer("hello", system="Be brief.")
    held = session.num_tokens
    assert session.infer("again").text == "I heard 2: again "
    first, second = server.chat.requests
    assert first["START"] == 1 and "Be brief." in first["MESSAGES"] and first["CORRID"] == 7
    assert second == {"CORRID": 7, "PROMPT": "again", "START": 0, "STEP": held}
    assert session.history == [("hello", "I heard 1: hello "), ("again", "I heard 2: again ")]


def test_another_system_message_in_mid_conversation_is_refused_and_the_same_one_is_not(client):
    session = client.session()
    session.infer("hello", system="Be brief.")
    session.infer("again", system="Be brief.")
    with pytest.raises(RequestRefusedError, match=r"end\(\) it first"):
        session.infer("again", system="Be long.")


def test_sampling_reaches_the_server_under_its_names_and_what_is_not_given_does_not(client, server):
    client.session(1).infer("hi", max_new_tokens=9, temperature=0.5, top_k=None, seed=2**64 - 1, stop=("a", "é"),
                            ignore_eos=True)
    sampling = {name: value for name, value in server.chat.requests[0].items() if name not in ("MESSAGES", "START")}
    assert sampling == {"CORRID": 1, "MAX_NEW_TOKENS": 9, "TEMPERATURE": 0.5, "SEED": 2**64 - 1,
                        "STOP_WORDS": ["a", "é"], "IGNORE_EOS": True}


def test_an_unknown_option_names_the_nearest_one(client):
    with pytest.raises(TypeError, match="'temperture'; did you mean 'temperature'"):
        client.session().infer("hi", temperture=1.0)


@pytest.mark.parametrize("options", [{"top_k": -1}, {"seed": 2**64}, {"temperature": "hot"}, {"stop": (3,)}])
def test_a_value_that_its_type_cannot_hold_is_refused_before_anything_is_sent(client, server, options):
    with pytest.raises(RequestRefusedError, match="cannot be sent as"):
        client.session().infer("hi", **options)
    assert server.chat.requests == []


def test_sessions_in_many_threads_share_one_channel_and_do_not_mix(client):
    def talk(number):
        session = client.session()
        return [session.infer(f"{number}.{turn}").text for turn in range(5)]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(talk, range(64)))
    assert answers == [[f"I heard {turn + 1}: {number}.{turn} " for turn in range(5)] for number in range(64)]


def test_a_second_turn_at_the_same_time_is_refused_and_harms_nothing(client):
    session = client.session()
    stream = session.stream("forever")
    next(stream)
    with pytest.raises(RequestRefusedError, match="is answering"):
        session.infer("now")
    stream.close()
    assert session.infer("now").finish_reason == "stop"


def test_cancel_from_another_thread_keeps_the_partial_answer_and_the_session(client, server):
    session = client.session()
    parts = []
    for part in session.stream("forever"):
        parts.append(part)
        if len(parts) == 3:
            canceller = threading.Thread(target=session.cancel)
            canceller.start()
    canceller.join(10)
    partial = "on " * parts[-1].num_completion_tokens
    assert parts[-1].finish_reason == "abort"
    assert session.history == [("forever", partial)]
    session.infer("again")
    assert server.chat.requests[-1]["STEP"] == parts[-1].num_session_tokens


def test_cancel_finds_a_turn_that_has_not_reached_the_model_yet(client, server):
    session = client.session()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(session.infer, "late")
        while not server.chat.requests:  # so that the turn is under way, and not begun
            pass
        cancelled = pool.submit(session.cancel)
        while len(server.chat.requests) < 3:  # a STOP came too early and is sent again
            pass
        server.chat.gate.set()
        assert answer.result(10).finish_reason == "abort"
        cancelled.result(10)


def test_cancel_without_a_turn_sends_nothing(client, server):
    session = client.session()
    session.cancel()
    assert server.chat.requests == []


def test_leaving_the_loop_stops_the_turn_on_the_server_and_keeps_what_it_generated(client, server):
    session = client.session()
    for part in session.stream("forever"):
        if part.num_completion_tokens == 3:
            break
    del part
    (question, partial), = session.history
    assert question == "forever" and partial.count("on") >= 3
    assert server.chat.running == {}
    assert len(server.chat.sessions[session.id]) == session.num_tokens


def test_undo_rolls_the_session_back_and_retry_asks_again(client, server):
    session = client.session()
    session.infer("one")
    kept = session.num_tokens
    session.infer("two")
    assert session.undo() == "two" and session.history == [("one", "I heard 1: one ")]
    session.infer("three")
    assert server.chat.requests[-1]["STEP"] == kept
    again = "".join(part.text for part in session.retry(temperature=0))
    assert again == "I heard 2: three " and server.chat.requests[-1]["STEP"] == kept
    assert len(session.history) == 2


def test_undoing_the_first_turn_begins_anew_with_the_same_system_message(client, server):
    session = client.session()
    session.infer("one", system="Be brief.")
    list(session.retry())
    assert server.chat.requests[-1]["START"] == 1 and "Be brief." in server.chat.requests[-1]["MESSAGES"]
    session.undo()
    with pytest.raises(RequestRefusedError, match="no turn to take back"):
        session.undo()


def test_a_lost_session_says_so_and_resumes_with_its_whole_history(client, server):
    session = client.session()
    session.infer("one", system="Be brief.")
    session.infer("two")
    server.chat.sessions.clear()
    with pytest.raises(SessionLostError, match="is not known") as lost:
        session.infer("three")
    assert lost.value.status is StatusCode.SESSION_CLOSED
    session.resume()
    assert session.infer("three").text == "I heard 3: three "
    assert session.infer("four").text == "I heard 4: four " and server.chat.requests[-1]["START"] == 0
    assert len(session.history) == 4


def test_turns_before_a_resume_can_still_be_taken_back(client, server):
    session = client.session()
    session.infer("one")
    session.infer("two")
    session.resume()
    session.infer("three")
    session.undo()
    session.undo()
    assert session.infer("four").text == "I heard 2: four "  # one and four
    assert server.chat.requests[-1]["START"] == 1


def test_a_session_that_another_client_replaced_is_lost(client):
    mine, theirs = client.session(5), client.session(5)
    mine.infer("a rather long message of mine")
    theirs.infer("hi")
    with pytest.raises(SessionLostError, match="cannot be reached"):
        mine.infer("more")


def test_a_template_that_rewrites_earlier_turns_is_told_all_of_them_each_time(client, server):
    server.chat.rewrites_turns = True
    session = client.session()
    for question in ("one", "two", "three"):
        session.infer(question)
    assert session.infer("four").text == "I heard 4: four "
    assert [request["START"] for request in server.chat.requests] == [1, 0, 1, 1, 1]


def test_end_forgets_the_conversation_here_and_on_the_server(client, server):
    session = client.session()
    session.infer("one", system="Be brief.")
    session.end()
    assert server.chat.sessions == {} and session.history == [] and session.num_tokens == 0
    session.end()
    assert session.infer("two").text == "I heard 1: two "
    assert [request.get("END") for request in server.chat.requests] == [None, 1, None]


def test_end_stops_a_running_turn(client, server):
    session = client.session()
    stream = session.stream("forever")
    next(stream)
    session.end()
    assert [part.finish_reason for part in stream][-1] == "abort"
    assert server.chat.sessions == {} and session.history == []


def test_a_full_session_names_the_limit_and_stays_usable(client):
    session = client.session()
    session.infer("one")
    with pytest.raises(SessionFullError, match="exceed session_len=100") as full:
        session.infer("word " * 100)
    assert full.value.status is StatusCode.SESSION_OUT_OF_LIMIT
    assert session.infer("two").text == "I heard 2: two "


@pytest.mark.parametrize(("question", "error", "line"), [
    ("die", ServerAwayError, "the engine ended: rank 0 was killed"),
    ("break", ServerFailedError, "an error in the server"),
])
def test_a_server_that_breaks_gives_its_own_line_and_leaves_the_session_as_it_was(client, question, error, line):
    session = client.session()
    session.infer("one")
    with pytest.raises(error, match=line):
        session.infer(question)
    assert session.infer("two").text == "I heard 2: two "


def test_an_answer_that_takes_too_long_is_given_up_and_leaves_no_trace(server):
    with ChatClient(server.address, timeout_s=0.3) as client:
        session = client.session()
        session.infer("one")
        with pytest.raises(DeadlineError, match="timeout_s"):
            session.infer("forever")
        while server.chat.running:
            pass
        assert session.infer("two").text == "I heard 2: two "


def test_after_a_restart_of_the_server_the_next_turns_find_it_again(client, server):
    session = client.session()
    session.infer("one")
    server.restart()
    with pytest.raises(SessionLostError):
        session.infer("two")
    session.resume()
    assert session.infer("two").text == "I heard 2: two "


def test_a_server_that_stops_in_mid_answer_is_away_and_the_turn_can_be_asked_again(client, server):
    session = client.session()
    session.infer("one")
    stream = session.stream("forever")
    next(stream)
    server.stop()
    with pytest.raises(ServerAwayError, match=server.address):
        list(stream)
    server.start()
    assert session.infer("two").text == "I heard 2: two "
