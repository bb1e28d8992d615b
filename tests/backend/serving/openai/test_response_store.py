"""The store of answers: bounded by number and by size, the least recently used forgotten first, shared where asked."""

from __future__ import annotations

from pathlib import Path

from backend.serving.openai.response_store import ResponseStore, StoredResponse

MESSAGE = {"id": "msg_1", "type": "message", "role": "user", "content": "Hello!"}


def response(number: int, text: str = "") -> StoredResponse:
    return StoredResponse({"id": f"resp_{number}", "output": [{"id": f"msg_{number}", "text": text}]}, (MESSAGE,))


def test_the_least_recently_used_answer_makes_room():
    store = ResponseStore(max_responses=2)
    store.put(response(1))
    store.put(response(2))
    store.get("resp_1")
    store.put(response(3))
    assert store.get("resp_2") is None
    assert store.get("resp_1").items == (MESSAGE, {"id": "msg_1", "text": ""})


def test_size_is_bounded_and_counted_to_the_byte():
    store = ResponseStore()
    store.put(response(10, "x" * 1000))
    size = store.size()[1]
    store = ResponseStore(max_bytes=20 * size)
    for number in range(10, 50):
        store.put(response(number, "x" * 1000))
    assert store.size() == (20, 20 * size)


def test_an_answer_that_is_too_large_is_not_kept_and_costs_no_other():
    store = ResponseStore(max_bytes=16 * 1000)
    store.put(response(1))
    store.put(response(2, "x" * 1000))
    assert store.get("resp_1") is not None and store.get("resp_2") is None


def test_a_deleted_answer_is_gone():
    store = ResponseStore()
    store.put(response(1))
    assert store.delete("resp_1") and not store.delete("resp_1")
    assert store.get("resp_1") is None and store.size() == (0, 0)


def test_stores_of_one_file_share_their_answers_and_their_bounds_after_its_name_is_gone(tmp_path: Path):
    first, second = (ResponseStore(str(tmp_path / "responses"), max_responses=2) for _ in range(2))
    (tmp_path / "responses").unlink()
    first.put(response(1, "one"))
    assert second.get("resp_1") == response(1, "one")
    second.put(response(2))
    second.put(response(3))
    assert first.get("resp_1") is None and first.size()[0] == 2
    assert first.delete("resp_3") and second.get("resp_3") is None
    assert list(tmp_path.iterdir()) == []
