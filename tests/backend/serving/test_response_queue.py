"""The queue between a stream's requests and its writer."""

from __future__ import annotations

import asyncio

from backend.serving.response_queue import ResponseQueue


def test_a_full_queue_holds_its_producer_until_half_is_read():
    async def act() -> None:
        queue = ResponseQueue(4)
        for number in range(4):
            await queue.put(number)
        waiting = asyncio.create_task(queue.put(4))
        await asyncio.sleep(0)
        assert queue.is_full and await queue.get() == 0
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await queue.get() == 1
        await waiting
        assert [await queue.get() for _ in range(3)] == [2, 3, 4]

    asyncio.run(act())


def test_many_producers_never_exceed_the_limit_and_each_keeps_its_order():
    async def act() -> None:
        queue = ResponseQueue(8)

        async def produce(name: int) -> None:
            for number in range(50):
                await queue.put((name, number))
                assert len(queue._items) <= 8

        producers = [asyncio.create_task(produce(name)) for name in range(5)]
        items = [await queue.get() for _ in range(5 * 50)]
        await asyncio.gather(*producers)
        for name in range(5):
            assert [number for who, number in items if who == name] == list(range(50))

    asyncio.run(act())
