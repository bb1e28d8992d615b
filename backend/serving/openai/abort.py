"""/v1/abort: ends an answer that is under way, by the id that its client was given, or a session's turn.

Used by app.py."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

from backend.errors import RequestError, SessionError
from backend.serving.openai.context import Context
from backend.serving.openai.errors import ApiError
from backend.serving.openai.interactive import SessionId
from backend.serving.openai.sampling_fields import ApiModel

router = APIRouter(tags=["operations"])


class AbortRequest(ApiModel):
    """What is to end: an answer, or the running turn of a session, which keeps what it has said so far."""

    id: str | None = Field(None, description="The id that chunks of the answer carry, such as chatcmpl-….")
    session_id: SessionId | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> AbortRequest:
        if (self.id is None) == (self.session_id is None):
            raise ValueError("give either id or session_id")
        return self


class AbortResponse(BaseModel):
    aborted: bool


@router.post("/v1/abort")
async def abort(request: AbortRequest, context: Context) -> AbortResponse:
    """Ends an answer; its client gets it as far as it is."""
    if request.session_id is not None:
        try:
            await context.engine.stop_session(request.session_id)
        except SessionError:
            raise ApiError(404, f"no turn of session {request.session_id} is under way; it has ended, or the "
                           "session is another server's", code="not_found", param="session_id") from None
    else:
        try:
            await context.engine.abort_group(request.id)
        except RequestError:
            raise ApiError(404, f"no answer {request.id!r} is under way; it has ended, or runs on another server",
                           code="not_found", param="id") from None
    return AbortResponse(aborted=True)
