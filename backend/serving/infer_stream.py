"""Infer stream: one ModelStreamInfer call, on which many requests are answered at once.

A task per request, one queue, one writer: several writers would wait for one another at each message (measured: 12 to
30 % slower with many requests on a stream). The queue is bounded, so that a slow reader slows its own models down and
fills no memory. Errors travel as messages and the stream lives on. Used by kserve_grpc.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from backend.errors import MillraceError
from backend.serving.infer_request import InferCall, check_request
from backend.serving.infer_response import ResponseEncoder, failure, refusal
from backend.serving.inference import Inference, only_response
from backend.serving.model_repository import ModelRepository
from backend.serving.protocol_error import ProtocolError, wire_status
from backend.serving.response_queue import ResponseQueue

_MAX_QUEUED_RESPONSES = 256
_MAX_RUNNING_REQUESTS = 1024  # of one stream; further ones are read when some are answered


class InferStream:
    """One stream from its first request to its last response."""

    def __init__(self, repository: ModelRepository, inference: Inference, context: grpc.aio.ServicerContext):
        self._repository = repository
        self._inference = inference
        self._context = context
        self._queue = ResponseQueue(_MAX_QUEUED_RESPONSES)
        self._slots = asyncio.Semaphore(_MAX_RUNNING_REQUESTS)
        self._tasks: set[asyncio.Task] = set()
        self._last_in_order: asyncio.Task | None = None
        metadata = dict(context.invocation_metadata() or ())
        # A client may ask that a model's error ends the stream with its gRPC status.
        self._ends_on_error = str(metadata.get("triton_grpc_error", "")).lower() == "true"

    async def run(self, requests: AsyncIterator[service_pb2.ModelInferRequest]) -> None:
        """Answers until the client has closed its side and all is answered; cancelled when the client leaves."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while (response := await self._queue.get()) is not None:
                if isinstance(response, MillraceError):
                    await self._context.abort(grpc.StatusCode[wire_status(response)[0]], str(response))
                await self._context.write(response)
        finally:
            pending = [reader, *self._tasks]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[service_pb2.ModelInferRequest]) -> None:
        try:
            async for request in requests:
                await self._slots.acquire()
                task = asyncio.create_task(self._answer(request))
                self._tasks.add(task)
                task.add_done_callback(self._forget)
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._queue.put(None)
        except DecodeError as error:  # nothing behind it can be read either
            await self._queue.put(ProtocolError("INTERNAL", f"a request is no ModelInferRequest: {error}"))

    def _forget(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        self._slots.release()

    async def _answer(self, request: service_pb2.ModelInferRequest) -> None:
        try:
            self._inference.refuse_when_stopping()
            call = check_request(self._repository, request)
        except MillraceError as error:
            await self._queue.put(refusal(request.id, str(error)))
            return
        try:
            if call.model.spec.is_decoupled:
                await self._answer_decoupled(call)
            else:
                await self._answer_once(call)
        except MillraceError as error:
            is_end = self._ends_on_error
            await self._queue.put(error if is_end else failure(call.model.spec.name, request.id, str(error)))

    async def _answer_decoupled(self, call: InferCall) -> None:
        queue, encoder = self._queue, ResponseEncoder(call)
        async with self._inference.answering(call) as responses:
            async for outputs in responses:
                if queue.is_full:
                    await queue.room()
                queue.append(encoder.streamed(outputs, is_final=False))
        if call.wants_empty_final:
            await queue.put(encoder.empty_final())

    async def _answer_once(self, call: InferCall) -> None:
        """Models that are not decoupled answer in the order of their requests."""
        earlier, self._last_in_order = self._last_in_order, asyncio.current_task()
        encoder = ResponseEncoder(call)
        async with self._inference.answering(call) as responses:
            response = encoder.streamed(await only_response(responses), is_final=True)
        if earlier is not None:
            await asyncio.wait([earlier])
        await self._queue.put(response)
