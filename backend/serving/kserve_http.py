"""KServe v2 over HTTP: the embedded server on port 33338, with Triton's generate extension.

Owns the listening port, the routes and the forms of an answer; requests become the gRPC protocol's messages and are
checked and run as those are. Used by backend.serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from backend.errors import MillraceError
from backend.serving.api_keys import KEY_REFUSAL
from backend.serving.generate import read_generate, write_generate
from backend.serving.http_body import BodyError, read_body
from backend.serving.http_service import HttpService, listen
from backend.serving.http_tensors import HEADER_LENGTH, read_json, read_request, write_response
from backend.serving.infer_request import InferCall, check_request
from backend.serving.infer_response import ResponseEncoder
from backend.serving.inference import Inference, only_response
from backend.serving.message_json import to_json
from backend.serving.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from backend.serving.model_repository import LOAD_REFUSAL, SHARED_MEMORY_REFUSAL, ModelRepository
from backend.serving.protocol_error import ProtocolError, wire_status
from backend.serving.server_options import ServerOptions

_MAX_QUEUED_EVENTS = 256


class HttpServer:
    """The embedded server. `start` and `stop` are called once each, on the event loop that serves.

    scrape  gives what /metrics answers; None: there is no such path"""

    def __init__(self, repository: ModelRepository, options: ServerOptions | None = None,
                 scrape: Callable[[], Awaitable[bytes]] | None = None):
        options = options or ServerOptions()
        self._inference = Inference("HTTP")
        self._http = HttpService(_Endpoints(repository, self._inference, options, scrape).app(), options)

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port, which port 0 leaves to the system. Raises ConfigError where it is taken."""
        listener = listen(host, port, "HTTP", "--http_port")
        await self._http.start(listener)
        return listener.getsockname()[1]

    async def stop(self, grace_s: float = 30.0) -> None:
        """Refuses new requests, lets the running ones finish for at most `grace_s`, then closes the port."""
        await self._inference.stop(grace_s)
        await self._http.stop()


class _Endpoints:
    """The routes, one method each."""

    def __init__(self, repository: ModelRepository, inference: Inference, options: ServerOptions,
                 scrape: Callable[[], Awaitable[bytes]] | None):
        self._repository = repository
        self._inference = inference
        self._options = options
        self._scrape = scrape

    def app(self) -> Starlette:
        """The whole protocol as an ASGI application."""
        routes = [
            self._route("/v2/health/live", self._live, "GET", needs_key=False),
            self._route("/v2/health/ready", self._ready, "GET", needs_key=False),
            self._route("/v2", self._server_metadata, "GET"),
            self._route("/v2/models/stats", self._statistics, "GET"),
            self._route("/v2/repository/index", self._index, "POST"),
            self._route("/v2/repository/models/{model}/{action:path}", _refuse("UNAVAILABLE", LOAD_REFUSAL), "POST"),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                self._route(prefix, self._model_metadata, "GET"),
                self._route(f"{prefix}/ready", self._model_ready, "GET"),
                self._route(f"{prefix}/config", self._model_config, "GET"),
                self._route(f"{prefix}/stats", self._statistics, "GET"),
                self._route(f"{prefix}/infer", self._infer, "POST"),
                self._route(f"{prefix}/generate", self._generate, "POST"),
                self._route(f"{prefix}/generate_stream", self._generate_stream, "POST"),
                self._route(f"{prefix}/trace/setting",
                            _refuse("UNIMPLEMENTED", "trace settings are not supported by this server"), "GET", "POST"),
            ]
        routes += [
            self._route("/v2/trace/setting",
                        _refuse("UNIMPLEMENTED", "trace settings are not supported by this server"), "GET", "POST"),
            self._route("/v2/logging",
                        _refuse("UNIMPLEMENTED", "log settings are not supported by this server"), "GET", "POST"),
            self._route("/v2/{kind}sharedmemory/{rest:path}", _refuse("UNIMPLEMENTED", SHARED_MEMORY_REFUSAL),
                        "GET", "POST"),
        ]
        if self._scrape is not None:
            routes.append(self._route("/metrics", self._metrics, "GET"))
        return Starlette(routes=routes)

    def _route(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], *methods: str,
               needs_key: bool = True) -> Route:
        async def answer(request: Request) -> Response:
            try:
                if needs_key and not self._options.api_keys.lets_in(request.headers.get("authorization")):
                    raise ProtocolError("UNAUTHENTICATED", KEY_REFUSAL)
                return await endpoint(request)
            except MillraceError as error:
                headers = {"Connection": "close"} if isinstance(error, BodyError) else None
                return JSONResponse({"error": str(error)}, wire_status(error)[1], headers)

        return Route(path, answer, methods=methods)

    async def _live(self, request: Request) -> Response:
        return Response(status_code=400 if self._inference.is_stopping else 200)

    async def _ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._repository.is_ready() and not self._inference.is_stopping else 400)

    async def _model_ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._repository.is_model_ready(*_model(request)) else 400)

    async def _server_metadata(self, request: Request) -> Response:
        return JSONResponse(to_json(self._repository.server_metadata()))

    async def _model_metadata(self, request: Request) -> Response:
        return JSONResponse(to_json(self._repository.metadata(*_model(request))))

    async def _model_config(self, request: Request) -> Response:
        return JSONResponse(to_json(self._repository.find(*_model(request)).spec.config))

    async def _statistics(self, request: Request) -> Response:
        return JSONResponse(to_json(self._repository.statistics(*_model(request))))

    async def _metrics(self, request: Request) -> Response:
        return Response(await self._scrape(), media_type=METRICS_CONTENT_TYPE)

    async def _index(self, request: Request) -> Response:
        body = await self._body(request)
        only_ready = bool(read_json(body).get("ready", False)) if body else False
        return JSONResponse(to_json(self._repository.index(only_ready))["models"])

    async def _infer(self, request: Request) -> Response:
        name, version = _model(request)
        self._inference.refuse_when_stopping()
        spec = self._repository.find(name, version).spec
        if spec.is_decoupled:
            raise ProtocolError("UNIMPLEMENTED",
                                "HTTP end point doesn't support models with decoupled transaction policy")
        message = read_request(await self._body(request), request.headers.get(HEADER_LENGTH), name, version)
        call = check_request(self._repository, message)
        body, json_length = write_response(spec, message, await _while_connected(request, self._only_response(call)))
        if json_length is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={HEADER_LENGTH: str(json_length)})

    async def _generate(self, request: Request) -> Response:
        call = await self._generate_call(request)
        response = await _while_connected(request, self._only_response(call))
        return JSONResponse(write_generate(call.model.spec, response))

    async def _generate_stream(self, request: Request) -> Response:
        call = await self._generate_call(request)
        events: asyncio.Queue = asyncio.Queue(_MAX_QUEUED_EVENTS)
        task = asyncio.create_task(self._put_events(call, events))
        try:
            first = await _while_connected(request, events.get())
            if isinstance(first, MillraceError):  # before the status line is sent, an error can still be the status
                raise first
        except BaseException:
            task.cancel()
            raise
        return _EventStream(_server_sent(first, events), task)

    async def _generate_call(self, request: Request) -> InferCall:
        name, version = _model(request)
        self._inference.refuse_when_stopping()
        spec = self._repository.find(name, version).spec
        return check_request(self._repository, read_generate(read_json(await self._body(request)), spec, version))

    async def _only_response(self, call: InferCall):
        async with self._inference.answering(call) as responses:
            response = ResponseEncoder(call).unary(await only_response(responses))
            async for _ in responses:
                raise ProtocolError("INVALID_ARGUMENT", "generate expects model to produce exactly 1 response, use "
                                    "generate stream for models that may generate various number of responses")
            return response

    async def _put_events(self, call: InferCall, events: asyncio.Queue) -> None:
        encoder = ResponseEncoder(call)
        try:
            async with self._inference.answering(call) as responses:
                async for outputs in responses:
                    await events.put(write_generate(call.model.spec, encoder.unary(outputs)))
            await events.put(None)
        except MillraceError as error:
            await events.put(error)

    async def _body(self, request: Request) -> bytes:
        """Raises BodyError."""
        return await read_body(request.receive, self._options)


def _model(request: Request) -> tuple[str, str]:
    return request.path_params.get("model", ""), request.path_params.get("version", "")


def _refuse(status: str, message: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        raise ProtocolError(status, message)

    return answer


async def _while_connected(request: Request, answer: Coroutine[Any, Any, Any]) -> Any:
    """The answer, which is given up when the client leaves."""
    answering = asyncio.create_task(answer)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ProtocolError("CANCELLED", "the client closed its connection")
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _server_sent(first: dict[str, Any] | None, events: asyncio.Queue) -> AsyncIterator[bytes]:
    """Server-sent events, until None or an error."""
    event: Any = first
    while event is not None:
        is_error = isinstance(event, MillraceError)
        document = {"error": str(event)} if is_error else event
        yield b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"
        event = None if is_error else await events.get()


class _EventStream(StreamingResponse):
    """A response that ends the task behind it, however it ends itself: the client may leave before the first event."""

    def __init__(self, content: AsyncIterator[bytes], task: asyncio.Task):
        super().__init__(content, media_type="text/event-stream")
        self._task = task

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._task.cancel()
