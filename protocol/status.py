"""Status codes that a streaming client hands its caller with each increment, as LMDeploy's Chatbot did in 2023."""

from enum import IntEnum


class StatusCode(IntEnum):
    STREAM_END = 0  # the answer is complete
    STREAM_ING = 1  # more will come
    SESSION_READY = 2
    SERVER_ERR = -1
    SESSION_CLOSED = -2
    SESSION_OUT_OF_LIMIT = -3  # prompt and answer do not fit session_len
    SESSION_INVALID_ARG = -4
