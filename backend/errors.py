"""The errors that a user can meet: one base, a child per border where a wrong value can enter.

Each message is one line that states the fact, the limit and the cure. Used everywhere; imports nothing."""


class MillraceError(Exception):
    """Base of every error that Millrace raises on purpose; command lines print it as one line."""


class ConfigError(MillraceError):
    """A configuration value, in a file or an option, that cannot be used."""


class CheckpointError(MillraceError):
    """A source checkpoint that is missing, damaged or of an unsupported kind."""


class NotFiniteError(CheckpointError):
    """Weights or activations that are NaN, infinite, or too large for what they are to become."""


class WorkspaceError(MillraceError):
    """A workspace folder that is missing, incomplete or in the way."""


class TokenizerError(MillraceError):
    """Tokenizer files that are missing or do not agree with one another."""


class TemplateError(MillraceError):
    """A chat template that cannot be found or rendered."""


class RequestError(MillraceError):
    """A request whose values are out of range; no other request is affected.

    field  the name of the value that is wrong, where it is one: what the message begins with or speaks of"""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ContextLengthError(RequestError):
    """A prompt that, with what is to be generated, is longer than session_len allows."""


class SessionError(RequestError):
    """A request that its session's state does not allow."""


class UnknownSessionError(SessionError):
    """A request that goes on in a session which was never started, has ended or expired."""


class CapacityError(MillraceError):
    """Not enough memory, blocks or queue for what was asked."""


class DeadlineError(MillraceError):
    """A request that was not complete in the time its caller gave it."""


class ShapeError(MillraceError):
    """Tensors or head counts that do not fit one another."""


class EngineDeadError(MillraceError):
    """The engine, or one of its ranks, ended; the message says why."""
