"""Grammar check: whether a grammar compiles and can be followed, found out where nothing can be harmed.

llguidance bounds its work by counts that some grammars escape: a schema with "multipleOf": 123456789 never ends, rules
that nest 5,000 deep overflow the stack and with it the process. So each grammar is first tried in a process of its own,
forked in milliseconds from one that holds the model's tokens, which the kernel ends when its time is over.
Used by front_end.py, in the front end's process: the engine gets only what has passed."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
import resource
import signal
import socket
import threading
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
from llguidance import LLMatcher

from backend.errors import CapacityError, RequestError
from backend.processes import start_process
from backend.text.grammar import MAX_GRAMMAR_CHARACTERS
from backend.text.grammar_compiler import GrammarCompiler, reason
from backend.text.tokenizer import Tokenizer

CPU_LIMIT_S = 0.3  # of one check, and so of what the engine may wait for; usual schemas take 0.005
WALL_LIMIT_S = 0.9  # on a busy machine
MEMORY_LIMIT_BYTES = 1 << 30
# Less than any thread of the engine has, so that what passes here does not overflow there.
STACK_BYTES = 1 << 20
WALK_TOKENS = 24  # followed at random, since some grammars only fail on the way
START_LIMIT_S = 60.0
MAX_PENDING = 16  # checks at a time
NUM_REMEMBERED = 1024
REFUSED_FOR_S = 60.0  # what took too long is not tried again for so long: the machine may have been busy
_BEGUN, _OK = b"+", b"ok"


class GrammarChecker:
    """Checks grammars for the model whose tokenizer lies in a folder; may be used by several threads.

    vocab_size  rows of the logits"""

    def __init__(self, tokenizer_dir: Path, vocab_size: int) -> None:
        self._model = (Path(tokenizer_dir), vocab_size)
        self._verdicts: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # digest → fault or "", until
        self._lock = threading.Lock()
        self._pending = threading.BoundedSemaphore(MAX_PENDING)
        self._control: socket.socket | None = None

    def check(self, grammar: str) -> None:
        """Takes milliseconds, at most a second, after at most another one in which too many are being checked; nothing
        for a grammar that was checked lately.

        Raises RequestError for one that does not work, CapacityError where too many are being checked."""
        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise RequestError(f"a grammar of {len(grammar):,} characters is longer than {MAX_GRAMMAR_CHARACTERS:,}; "
                               "give a smaller one")
        try:
            text = grammar.encode()
        except UnicodeEncodeError:
            raise RequestError("the grammar or schema holds a lone surrogate; send valid UTF-8") from None
        digest = hashlib.sha256(text).digest()
        fault, until_s = self._verdicts.get(digest, ("", 0.0))
        if time.monotonic() >= until_s:
            if not self._pending.acquire(timeout=WALL_LIMIT_S):
                raise CapacityError(f"{MAX_PENDING} grammars are being checked; try again later")
            try:
                fault, until_s = self._verdict(text)
            finally:
                self._pending.release()
            with self._lock:
                self._verdicts[digest] = fault, until_s
                if len(self._verdicts) > NUM_REMEMBERED:
                    self._verdicts.popitem(last=False)
        if fault:
            raise RequestError(fault)

    def start(self) -> None:
        """Starts the process where it does not run, so that the first check does not wait for it."""
        with self._lock:
            if self._control is None or not self._process.is_alive():
                self._control, theirs = socket.socketpair()
                self._process = start_process(_fork_checks, (theirs, *self._model), "grammar-check", daemon=True)
                theirs.close()

    def close(self) -> None:
        """Ends the process; the next check starts it again."""
        with self._lock:
            if self._control is not None:
                self._control.close()
                self._process.join()
                self._control = None

    def _verdict(self, text: bytes) -> tuple[str, float]:
        """What is wrong, and until when (time.monotonic) that holds."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.settimeout(START_LIMIT_S)
            with theirs:
                self._hand_over(theirs)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # ended before it had read all
                ours.sendall(text)
                ours.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError, TimeoutError):
                while part := ours.recv(4096):
                    answer += part
        if not answer:
            raise CapacityError("grammars cannot be checked now, since the process that does it ended; try again later")
        verdict = answer.removeprefix(_BEGUN)
        if not verdict:
            return ("the grammar or schema is too complex to be compiled; give one with fewer alternatives, "
                    "repetitions and levels, and without a large multipleOf"), time.monotonic() + REFUSED_FOR_S
        return verdict.decode().removeprefix(_OK.decode()), math.inf

    def _hand_over(self, connection: socket.socket) -> None:
        """The process gets its end of the connection, and is started where there is none."""
        for _ in range(2):
            self.start()
            with self._lock, contextlib.suppress(OSError, AttributeError):  # it ended, or was closed
                socket.send_fds(self._control, [b"."], [connection.fileno()])
                return


def _fork_checks(control: socket.socket, tokenizer_dir: Path, vocab_size: int) -> None:
    """The process's body: a child for each connection that arrives, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads would not outlive a fork, nor find the memory in a child
    compiler = GrammarCompiler(Tokenizer(tokenizer_dir), vocab_size)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _check_and_exit(compiler, vocab_size, socket.socket(fileno=descriptors[0]))
        os.close(descriptors[0])


def _check_and_exit(compiler: GrammarCompiler, vocab_size: int, connection: socket.socket) -> None:
    """Ends the process, at the latest when its time is over: by the default action of the timers' signals."""
    try:
        signal.setitimer(signal.ITIMER_REAL, WALL_LIMIT_S)
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MEMORY_LIMIT_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        silent = os.open(os.devnull, os.O_WRONLY)  # an overflowing stack would have its say
        os.dup2(silent, 2)
        connection.sendall(_BEGUN)
        text = b""
        while part := connection.recv(1 << 20):
            text += part
        threading.stack_size(STACK_BYTES)
        thread = threading.Thread(
            target=lambda: connection.sendall(_OK + _fault(compiler, vocab_size, text.decode()).encode()))
        thread.start()
        thread.join()
    finally:
        os._exit(0)


def _fault(compiler: GrammarCompiler, vocab_size: int, grammar: str) -> str:
    """What is wrong with the grammar; nothing where some tokens can be followed."""
    try:
        matcher = compiler.compile(grammar)
    except RequestError as error:
        return str(error)
    chance = random.Random(0)
    for _ in range(WALK_TOKENS):
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little"))
        allowed = allowed[allowed != compiler.end_id]
        if matcher.is_error():
            return _stuck(matcher)
        if not len(allowed):
            return "" if matcher.is_accepting() else ("the grammar or schema allows no answer at all; "
                                                      "give one that some text satisfies")
        matcher.consume_token(int(chance.choice(allowed)))
        if matcher.is_stopped():
            break
    return _stuck(matcher) if matcher.is_error() else ""


def _stuck(matcher: LLMatcher) -> str:
    why = reason(matcher)
    if "NoExtensionBias" in why:  # llguidance's word for a rule that no text fits
        return ("the grammar or schema allows no answer at all, or begins some that nothing can complete; "
                "give one that some text satisfies")
    return f"the grammar or schema is too complex to be followed: {why}"
