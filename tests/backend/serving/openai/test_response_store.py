"""The store of answers: bounded by number and by size, the least recently used forgotten first."""

from __future__ import annotations

from backend.serving.openai.response_store import ResponseStore, stored

MESSAGE = {"id": "msg_1", "type": "message", "role": "user", "content": "Hello!"}


def response(number: int, text: str = ""):
    return stored({"id": f"resp_{number}", "output": [{"id": f"msg_{number}", "text": text}]}, (MESSAGE,))


def test_the_least_recently_used_answer_makes_room():
    store = ResponseStore(max_responses=2)
    store.put(response(1))
    store.put(response(2))
    store.get("resp_1")
    store.put(response(3))
    assert store.get("resp_2") is None
    assert store.get("resp_1").items == (MESSAGE, {"id": "msg_1", "text": ""})


def test_size_is_bounded_and_counted_to_the_byte():
    size = response(1, "x" * 1000).num_bytes
    store = ResponseStore(max_bytes=3 * size)
    for number in range(1, 10):
        store.put(response(number, "x" * 1000))
    assert len(store) == 3 and store.num_bytes == 3 * size
    store.put(response(10, "x" * 4000))
    assert len(store) == 0 and store.num_bytes == 0


def test_a_deleted_answer_is_gone():
    store = ResponseStore()
    store.put(response(1))
    assert store.delete("resp_1") and not store.delete("resp_1")
    assert store.get("resp_1") is None and store.num_bytes == 0
