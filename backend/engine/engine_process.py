"""Engine process: the engine's loop in a process of its own, reached over ZeroMQ, so that no front end can stall it.

Speaks messages.py: `Command` in, `Event` out, to the peer that a request came from. When the engine cannot go on it
says why, once, to every peer, and ends. Used by async_engine.py; any EngineClient can connect to its address."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time

import msgspec
import zmq

from backend.config import EngineConfig
from backend.engine.engine import Engine, start_engine
from backend.engine.messages import Command, Event, Refusal, unlimited_queues
from backend.errors import MillraceError, RequestError
from backend.model_source import ModelSource
from backend.requests import GenerateOutput

logger = logging.getLogger(__name__)

IDLE_POLL_MS = 500  # how soon an idle engine notices that its parent is gone
PEER_CHECK_S = 1.0  # and a busy one that the front end of a waiting request is


def run_engine_process(source: ModelSource, config: EngineConfig, address: str) -> None:
    """Entry point of the process: start the engine, serve `address` until told to stop or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front end, which then says stop
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        unlimited_queues(router)
        router.router_mandatory = True  # a peer that is gone is an error, not silence
        router.bind(address)
        loop = _EngineLoop(router)
        if not loop.wait_for_peer():
            return
        try:
            engine = start_engine(source, config)
            try:
                loop.run(engine)
            finally:
                engine.close()
            loop.tell_all(Event(dead="EngineDeadError: the engine was stopped"))
        except MillraceError as error:
            loop.tell_all(Event(dead=f"{type(error).__name__}: {error}"))
        except Exception as error:
            logger.exception("the engine ended")
            loop.tell_all(Event(dead=f"{type(error).__name__}: {' '.join(str(error).split())}"))
        finally:
            router.close(linger=2000)


class _EngineLoop:
    def __init__(self, router: zmq.Socket) -> None:
        self._router = router
        self._peers: set[bytes] = set()
        self._gone: set[bytes] = set()
        self._owner: dict[str, bytes] = {}
        self._checked_at_s = 0.0  # when peers were last asked for
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Command).decode

    def wait_for_peer(self) -> bool:
        """Somebody is there to be told if the start fails; its hello stays unread. False if the parent is gone."""
        while _parent_is_alive():
            if self._router.poll(IDLE_POLL_MS):
                return True
        return False

    def run(self, engine: Engine) -> None:
        while _parent_is_alive():
            while self._router.poll(0 if engine.has_work else IDLE_POLL_MS):
                peer, payload = self._router.recv_multipart()
                self._peers.add(peer)
                try:
                    command = self._decode(payload)
                except (msgspec.MsgspecError, MillraceError) as error:
                    self._refuse(peer, _request_id(payload), RequestError(f"a command that does not work: {error}"))
                    continue
                if command.kind == "stop":
                    return
                self._apply(engine, peer, command)
            if engine.has_work:
                self._deliver(engine.step())
                self._look_for_peers()
                self._end_requests_of_gone(engine)
            else:
                engine.expire_sessions()

    def tell_all(self, event: Event) -> None:
        """To every peer that has spoken, including those whose first words are still unread."""
        while self._router.poll(0):
            self._peers.add(self._router.recv_multipart()[0])
        for peer in tuple(self._peers):
            self._send(peer, event)

    def _apply(self, engine: Engine, peer: bytes, command: Command) -> None:
        try:
            if command.kind == "hello":
                self._send(peer, Event(ready=True, session_len=engine.config.session_len,
                                       max_requests=engine.config.max_batch_size + engine.config.max_queued))
            elif command.kind == "add":
                engine.add_request(command.request)
                self._owner[command.request.request_id] = peer
            elif command.kind == "abort":
                engine.abort(command.request_id)
            elif command.kind == "abort_group":
                engine.abort_group(command.request_id)
                self._send(peer, Event(done=command.call_id))
            elif command.kind == "finish":
                engine.finish(command.request_id, command.session_id, command.num_completion_tokens)
                self._owner.pop(command.request_id, None)
            elif command.kind == "stop_session":
                engine.stop_session(command.session_id, command.forget)
                self._send(peer, Event(done=command.call_id))
            elif command.kind == "stats":
                self._send(peer, Event(done=command.call_id, stats=engine.stats()))
            elif command.kind == "end_session":
                engine.end_session(command.session_id)
                self._send(peer, Event(done=command.call_id))
        except MillraceError as error:
            self._refuse(peer, command.request.request_id if command.request else command.call_id, error)

    def _refuse(self, peer: bytes, about: str, error: MillraceError) -> None:
        self._send(peer, Event(refused=Refusal(about, type(error).__name__, str(error),
                                                getattr(error, "field", None))))

    def _deliver(self, outputs: list[GenerateOutput]) -> None:
        by_peer: dict[bytes, list[GenerateOutput]] = {}
        for output in outputs:
            peer = self._owner.get(output.request_id)
            if output.finish_reason is not None:
                self._owner.pop(output.request_id, None)
            if peer is not None:
                by_peer.setdefault(peer, []).append(output)
        for peer, their_outputs in by_peer.items():
            self._send(peer, Event(outputs=their_outputs))

    def _look_for_peers(self) -> None:
        """Says nothing to all who have requests: what is sent to one that was killed shows that it is gone."""
        now_s = time.monotonic()
        if now_s - self._checked_at_s >= PEER_CHECK_S:
            self._checked_at_s = now_s
            for peer in set(self._owner.values()):
                self._send(peer, Event())

    def _end_requests_of_gone(self, engine: Engine) -> None:
        """Nobody is left to read what they would still say."""
        for request_id, peer in tuple(self._owner.items()) if self._gone else ():
            if peer in self._gone:
                engine.abort(request_id)
                del self._owner[request_id]
        self._gone.clear()

    def _send(self, peer: bytes, event: Event) -> None:
        try:
            self._router.send_multipart([peer, self._encode(event)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._peers.discard(peer)
            self._gone.add(peer)


def _request_id(payload: bytes) -> str:
    """Whom a command that cannot be decoded is about, as far as that can be told."""
    try:
        command = msgspec.msgpack.decode(payload)
        return str(command["request"]["request_id"])
    except (msgspec.MsgspecError, LookupError, TypeError):
        return ""


def _parent_is_alive() -> bool:
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()
