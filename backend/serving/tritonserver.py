"""Triton Inference Server: any ServedModel as a model of its Python backend, thin, without torch.

Owns one asyncio loop, in a thread, per model instance; answers through response senders, so that requests run side by
side. Importable only inside tritonserver, which provides `triton_python_backend_utils`. Subclassed by
workspace_model.py. What the server does otherwise than the embedded one: docs/kserve.md."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from backend.errors import DeadlineError, MillraceError, RequestError
from backend.serving.served_model import InferContext, ServedModel, status_of

logger = logging.getLogger(__name__)

CANCEL_POLL_S = 0.1  # each look is a message to the server's process and back
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonModel:
    """What the Python backend wants of a `TritonPythonModel`; subclasses say which ServedModel it is."""

    def open_model(self, args: dict[str, str]) -> AbstractAsyncContextManager[ServedModel]:
        """The model, open while the server has it loaded; `args` are the Python backend's.

        Raises MillraceError where it cannot be loaded; the server then reports the model as unavailable."""
        raise NotImplementedError

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._required = [tensor["name"] for tensor in config["input"] if not tensor.get("optional")]
        self._num_inputs = len(config["input"])
        self._is_decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._opened = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=args["model_name"], daemon=True)
        self._thread.start()
        self._model = self._run(self._opened.enter_async_context(self.open_model(args)))

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._serve(request, request.get_response_sender()), self._loop)

    def finalize(self) -> None:
        """Called once the requests in flight are answered."""
        self._run(self._opened.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, request: Any, sender: Any) -> None:
        """One request, from its tensors to the final flag; cancelled when its caller has cancelled it or is gone."""
        answer = asyncio.create_task(self._answer(request, sender))
        while not (await asyncio.wait({answer}, timeout=CANCEL_POLL_S))[0]:
            if sender.is_cancelled():
                answer.cancel()
                break
        await answer

    async def _answer(self, request: Any, sender: Any) -> None:
        # An error always carries the final flag: the server crashes on one without it if the stream asked for
        # `triton_grpc_error`, and a request that never gets the flag stays open for ever.
        context = _context(request)
        try:
            last = await asyncio.wait_for(self._respond(request, sender, context), context.timeout_s)
        except asyncio.TimeoutError:  # the built-in TimeoutError only from Python 3.11 on
            last = _failure(DeadlineError(f"the answer was not complete within the request's timeout of "
                                          f"{context.timeout_s:g} s"))
        except asyncio.CancelledError:
            last = _error_response("the request was cancelled", "CANCELLED")
        except MillraceError as error:
            last = _failure(error)
        except Exception as error:
            logger.exception("model '%s' failed on request %r", self._model.name, context.request_id)
            reason = (str(error).splitlines() or [""])[0]
            last = _error_response(f"{type(error).__name__}: {reason}", "INTERNAL")
        if last is None:
            sender.send(flags=FINAL)
        else:
            sender.send(last, flags=FINAL)

    async def _respond(self, request: Any, sender: Any, context: InferContext) -> Any:
        """Sends the responses of a decoupled model; the one of another model is returned, to go with the final flag."""
        async with aclosing(self._model.infer(self._inputs(request), context)) as responses:
            async for tensors in responses:
                response = pb_utils.InferenceResponse([
                    pb_utils.Tensor(name, value) for name, value in tensors.items() if context.wants(name)])
                if not self._is_decoupled:
                    return response
                sender.send(response)
        return None if self._is_decoupled else _error_response("the model gave no response", "INTERNAL")

    def _inputs(self, request: Any) -> dict[str, np.ndarray]:
        """The request's tensors. The server counts inputs but does not look which ones are there; we do.

        The sequence id of the protocol is not among them: clients of 2023 send the session as CORRID, too."""
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        missing = [name for name in self._required if name not in inputs]
        if missing:
            fewest, most = len(self._required), self._num_inputs
            raise RequestError(
                f"[request id: {request.request_id() or '<id_unknown>'}] expected number of inputs "
                f"{most if fewest == most else f'between {fewest} and {most}'} but got {len(inputs)} inputs for model "
                f"'{self._model.name}'. Got input(s) {_quoted(inputs)}, but missing required input(s) "
                f"{_quoted(missing)}. Please provide all required input(s).")
        return inputs

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _context(request: Any) -> InferContext:
    # Microseconds, unsigned: 0 is none, and a negative one, which the server lets pass, arrives above 2**63.
    timeout_us = request.timeout()
    timeout_s = timeout_us / 1e6 if 0 < timeout_us < 2**63 else None
    return InferContext(request.request_id(), timeout_s, frozenset(request.requested_output_names()))


def _quoted(names: Iterable[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _failure(error: MillraceError) -> Any:
    return _error_response(str(error), status_of(error)[1])


def _error_response(message: str, code: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
