"""The engine in its own process: streams, aborts, sessions, and what everybody hears when it dies."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

pytest.importorskip("zmq")
pytest.importorskip("msgspec")

import msgspec
import zmq

from backend.engine.async_engine import AsyncEngine
from backend.engine.engine import Engine, start_engine
from backend.engine.engine_client import EngineClient
from backend.engine.messages import Command
from backend.errors import CapacityError, EngineDeadError, RequestError, SessionError
from backend.requests import FinishReason, GenerateOutput, GenerateRequest, SamplingParams
from tests.backend.tiny_model import TinySource, tiny_source

T = TypeVar("T")
GREEDY = SamplingParams(temperature=0, max_new_tokens=20, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_new_tokens=200, ignore_eos=True)


def request(name: str, length: int = 10, sampling: SamplingParams = GREEDY, **session: int) -> GenerateRequest:
    return GenerateRequest(name, tuple(range(3, 3 + length)), sampling, **session)


def with_engine(play: Callable[[AsyncEngine], Awaitable[T]], source: TinySource | None = None) -> T:
    async def main() -> T:
        model = source or tiny_source()
        async with AsyncEngine(model, model.engine) as engine:
            return await asyncio.wait_for(play(engine), 60)
    return asyncio.run(main())


async def collect(engine: AsyncEngine, wanted: GenerateRequest) -> list[GenerateOutput]:
    return [output async for output in engine.generate(wanted)]


def tokens(outputs: list[GenerateOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def alone(wanted: GenerateRequest) -> list[int]:
    """The same request by an engine in this process."""
    source = tiny_source()
    engine: Engine = start_engine(source, source.engine)
    engine.add_request(wanted)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return tokens(outputs)


def test_streams_at_once_each_get_their_own_tokens():
    requests = [request(str(length), length) for length in range(1, 12)]

    async def play(engine: AsyncEngine) -> list[list[GenerateOutput]]:
        return await asyncio.gather(*(collect(engine, wanted) for wanted in requests))

    for wanted, outputs in zip(requests, with_engine(play), strict=True):
        assert tokens(outputs) == alone(wanted)
        assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_a_refused_request_raises_its_own_error_and_harms_no_other():
    async def play(engine: AsyncEngine) -> list[GenerateOutput]:
        good = asyncio.create_task(collect(engine, request("good")))
        with pytest.raises(RequestError, match="exceed session_len=256"):
            await collect(engine, request("bad", 90, SamplingParams(max_new_tokens=300)))
        with pytest.raises(SessionError, match="cannot be reached"):
            await collect(engine, request("odd", session_id=3, session_step=4))
        return await good

    assert tokens(with_engine(play)) == alone(request("good"))


def test_leaving_a_stream_aborts_its_request():
    async def play(engine: AsyncEngine) -> list[GenerateOutput]:
        stream = engine.generate(request("1", sampling=ENDLESS, session_id=1))
        async for _ in stream:
            break
        await stream.aclose()
        # The session is free again, so the abort has arrived.
        return await collect(engine, request("2", session_id=1, session_step=0))

    assert tokens(with_engine(play)) == alone(request("2"))


def test_abort_gives_the_stream_a_last_output():
    async def play(engine: AsyncEngine) -> list[GenerateOutput]:
        outputs = []
        async for output in engine.generate(request("1", sampling=ENDLESS)):
            outputs.append(output)
            if len(outputs) == 3:
                await engine.abort("1")
        return outputs

    outputs = with_engine(play)
    assert outputs[-1].finish_reason is FinishReason.ABORT
    assert len(tokens(outputs)) < 200


def test_a_group_of_requests_is_aborted_by_its_name_from_another_front_end():
    tiny = tiny_source(session_len=2600, max_position_embeddings=2600, cache_max_entry_count=400)
    endless = SamplingParams(temperature=0, max_new_tokens=2500, ignore_eos=True)

    async def play(engine: AsyncEngine) -> list[list[GenerateOutput]]:
        async with EngineClient(engine.address) as other:
            running = [asyncio.create_task(collect(engine, request(name, sampling=endless)))
                       for name in ("chat-1/0", "chat-1/1", "chat-10/0", "alone")]
            while (await other.stats()).num_running < 4:
                await asyncio.sleep(0.01)
            with pytest.raises(RequestError, match="no request of '' is under way"):  # though one has no group
                await other.abort_group("")
            await other.abort_group("chat-1")
            ended = [await task for task in running[:2]]
            assert not running[2].done()
            await other.abort_group("chat-10")
            ended.append(await running[2])
            assert not running[3].done()
            await engine.abort("alone")
            ended.append(await running[3])
            with pytest.raises(RequestError, match="no request of 'chat-1' is under way"):
                await other.abort_group("chat-1")
            return ended

    for outputs in with_engine(play, tiny):
        assert outputs[-1].finish_reason is FinishReason.ABORT


@pytest.mark.parametrize("tp", [1, 2])
def test_a_killed_engine_says_so_to_every_waiting_request(tp):
    async def play(engine: AsyncEngine) -> list[BaseException]:
        waiting = [asyncio.create_task(collect(engine, request(str(i), sampling=ENDLESS))) for i in range(5)]
        await asyncio.sleep(0)
        os.kill(engine.process.pid, signal.SIGKILL)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(EngineDeadError):
            await collect(engine, request("late"))
        return errors

    for error in with_engine(play, tiny_source(tp=tp)):
        assert isinstance(error, EngineDeadError)
        assert str(error) == "the engine process was killed by signal 9; the machine may be out of memory"


class UnreadableSource(TinySource):
    """A source whose disk fails while the weights are read."""

    def tensors(self):
        yield from list(super().tensors())[:3]
        raise OSError("the disk is gone")


def test_an_engine_that_cannot_start_raises_its_own_error():
    tiny = tiny_source(cache_max_entry_count=10**12)
    with pytest.raises(CapacityError, match="use cache_max_entry_count="):
        with_engine(lambda engine: asyncio.sleep(0), tiny)


def test_an_unexpected_failure_is_one_line_with_its_kind():
    tiny = tiny_source()
    with pytest.raises(EngineDeadError, match=r"^rank 0: OSError: the disk is gone$"):
        with_engine(lambda engine: asyncio.sleep(0), UnreadableSource(tiny.model, tiny.engine))


def test_stopping_tells_what_still_runs():
    async def main() -> BaseException | list[GenerateOutput]:
        tiny = tiny_source()
        async with AsyncEngine(tiny, tiny.engine) as engine:
            running = asyncio.create_task(collect(engine, request("1", sampling=ENDLESS)))
            await asyncio.sleep(0.05)
        return (await asyncio.gather(running, return_exceptions=True))[0]

    error = asyncio.run(asyncio.wait_for(main(), 60))
    assert isinstance(error, EngineDeadError) and str(error) == "the engine was stopped"


def test_a_command_that_cannot_be_decoded_is_refused_and_harms_no_other():
    async def play(engine: AsyncEngine) -> list[GenerateOutput]:
        good = asyncio.create_task(collect(engine, request("good")))
        for wrong in ({"token_ids": ("three",)}, {"session_id": "seven"}, {"token_ids": (2**70,)}):
            with pytest.raises(RequestError, match=r"a (command|request) that"):
                await collect(engine, dataclasses.replace(request("bad"), **wrong))
        return await good

    assert tokens(with_engine(play)) == alone(request("good"))


def test_outputs_wait_for_a_front_end_that_does_not_read():
    """ZeroMQ drops what is beyond 1,000 unread messages unless told otherwise; a lost one would hang its reader."""
    tiny = tiny_source(session_len=2600, max_position_embeddings=2600, cache_max_entry_count=200)
    endless = SamplingParams(temperature=0, max_new_tokens=2500, ignore_eos=True)

    async def play(engine: AsyncEngine) -> list[GenerateOutput]:
        stream = engine.generate(request("1", sampling=endless))
        outputs = [await anext(stream)]
        stalled_since = time.monotonic()
        while time.monotonic() - stalled_since < 30 and process_is_busy(engine.process.pid):
            time.sleep(0.1)  # the whole front end stands still, its event loop too
        return outputs + [output async for output in stream]

    assert len(tokens(with_engine(play, tiny))) == 2500


def test_the_requests_of_a_front_end_that_was_killed_end():
    tiny = tiny_source(session_len=2600, max_position_embeddings=2600, cache_max_entry_count=400)
    endless = SamplingParams(temperature=0, max_new_tokens=2500, ignore_eos=True)

    async def play(engine: AsyncEngine) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as killed:
            killed.connect(engine.address)
            for name in "ab":
                killed.send(msgspec.msgpack.encode(Command("add", request(name, sampling=endless))))
            killed.poll()
            killed.close(linger=0)
        mine = await collect(engine, request("mine"))
        while (stats := await engine.stats()).num_running:
            await asyncio.sleep(0.01)
        assert stats.num_completion_tokens < 2 * 2500 and stats.num_aborts == 2 and len(tokens(mine)) == 20
        assert stats.num_free_blocks == stats.num_blocks

    with_engine(play, tiny)


def test_a_request_that_waits_for_its_turn_ends_when_its_front_end_is_killed():
    tiny = tiny_source(max_batch_size=1, session_len=5100, max_position_embeddings=5100, cache_max_entry_count=400)
    endless = SamplingParams(temperature=0, max_new_tokens=5000, ignore_eos=True)

    async def play(engine: AsyncEngine) -> None:
        stream = engine.generate(request("mine", sampling=endless))
        await anext(stream)
        with zmq.Context() as context, context.socket(zmq.DEALER) as killed:
            killed.connect(engine.address)
            killed.send(msgspec.msgpack.encode(Command("add", request("waiting"))))
            while not (await engine.stats()).num_waiting:
                await asyncio.sleep(0.01)
            killed.close(linger=0)
        while (stats := await engine.stats()).num_waiting:
            await asyncio.sleep(0.01)
        assert (stats.num_running, stats.num_aborts) == (1, 1)
        await stream.aclose()

    with_engine(play, tiny)


def process_is_busy(pid: int) -> bool:
    """Whether a process uses the CPU: an engine polls when it has no work."""
    def used_ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    before = used_ticks()
    time.sleep(0.3)
    return used_ticks() - before > 3


def test_a_start_that_is_cancelled_leaves_no_process():
    async def main() -> AsyncEngine:
        tiny = tiny_source()
        engine = AsyncEngine(tiny, tiny.engine)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.__aenter__(), 0.1)
        return engine

    assert not asyncio.run(main()).process.is_alive()
