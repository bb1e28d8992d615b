"""Async HTTP connection: http_connection.py's HttpConnection for asyncio, on aiohttp. Used by chat_client.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import aiohttp

from client.connection import CONTROL_TIMEOUT_S
from client.errors import ChatError, DeadlineError
from client.http_connection import model_info
from client.http_target import HttpTarget
from client.openai_wire import CHAT_PATH, HEALTH_PATH, MODELS_PATH, AnswerReader, encode_chat, refusal
from client.server_info import ServerInfo
from client.wire import Increment

T = TypeVar("T")


class AsyncHttpConnection:
    """As HttpConnection. The connections open with the first call, because they belong to the loop that runs then."""

    def __init__(self, target: HttpTarget, model: str | None) -> None:
        self.target = target
        self._wanted = model
        self._model: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._answers: dict[int, Waiting] = {}  # by session id

    async def infer(self, inputs: Mapping[str, Any]) -> AsyncGenerator[Increment, None]:
        """As HttpConnection.infer."""
        reader, response = AnswerReader(), None
        body = encode_chat(inputs, self._model or await self._ask_model())
        waiting = self._answers[inputs["CORRID"]] = Waiting()
        try:
            with self._translated_errors():
                timeout = aiohttp.ClientTimeout(total=self.target.timeout_s, connect=CONTROL_TIMEOUT_S)
                response = await waiting.on(self._http().post(self.target.address + CHAT_PATH, data=body,
                                                              timeout=timeout))
                if response.status != 200:
                    self._model = None
                    raise refusal(response.status, await response.read(), self.target.address)
                while data := await waiting.on(response.content.readany()):
                    for part in reader.feed(data):
                        yield part
            for part in reader.end():
                yield part
        except ChatError:
            if not waiting.is_left:
                raise
        except asyncio.CancelledError:
            if not waiting.is_left:
                raise
        finally:
            if self._answers.get(inputs["CORRID"]) is waiting:
                del self._answers[inputs["CORRID"]]
            if response is not None:
                response.close()
        if waiting.is_left:
            for part in reader.aborted():
                yield part

    async def command(self, inputs: Mapping[str, Any]) -> None:
        """As HttpConnection.command."""
        if (waiting := self._answers.get(inputs["CORRID"])) is not None:
            waiting.leave()

    async def is_ready(self) -> bool:
        """As HttpConnection.is_ready."""
        try:
            status, _ = await self._get(HEALTH_PATH)
            return status == 200 or (status == 404 and (await self._get(MODELS_PATH))[0] == 200)
        except ChatError:
            return False

    async def server_info(self) -> ServerInfo:
        """As HttpConnection.server_info."""
        status, body = await self._get(MODELS_PATH)
        if status != 200:
            raise refusal(status, body, self.target.address)
        return model_info(body, self._wanted, self.target.address)

    async def close(self) -> None:
        """Ends running requests too."""
        for waiting in list(self._answers.values()):
            waiting.leave()
        if self._session is not None:
            await self._session.close()

    async def _ask_model(self) -> str:
        self._model = (await self.server_info()).model_name
        return self._model

    async def _get(self, path: str) -> tuple[int, bytes]:
        with self._translated_errors():
            timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
            async with self._http().get(self.target.address + path, timeout=timeout) as response:
                return response.status, await response.read()

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ssl=self.target.tls or True)
            self._session = aiohttp.ClientSession(connector=connector, headers=self.target.headers)
        return self._session

    @contextmanager
    def _translated_errors(self) -> Generator[None, None, None]:
        try:
            yield
        except aiohttp.ConnectionTimeoutError:
            raise self.target.no_connection("no connection in time") from None
        except asyncio.TimeoutError:
            raise DeadlineError(f"{self.target.address} did not answer in time; allow a longer timeout_s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self.target.no_connection(error) from error


class Waiting:
    """What one answer waits for, so that another task can end it."""

    def __init__(self) -> None:
        self._task: asyncio.Future[Any] | None = None
        self.is_left = False

    async def on(self, awaitable: Awaitable[T]) -> T:
        """Its result. Raises CancelledError once the answer is left."""
        self._task = asyncio.ensure_future(awaitable)
        if self.is_left:
            self._task.cancel()
        return await self._task

    def leave(self) -> None:
        """Ends the answer."""
        self.is_left = True
        if self._task is not None:
            self._task.cancel()
