"""Chat schema: the request and the answer of /v1/chat/completions, field by field as in OpenAI's reference.

A field of type None is OpenAI's and not supported: null is accepted, anything else refused with its name. Fields that
change nothing about the answer of this server are accepted and say so. Used by chat.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from backend.serving.openai.format_fields import FormatFields, ResponseFormat
from backend.serving.openai.sampling_fields import ApiModel, Metadata, SamplingFields, StreamOptions
from backend.serving.openai.tool_schema import ToolChoice, Tools

_UNUSED = "Accepted; changes nothing here."
_SENT_BACK = "What clients add to an answer and send back with it; changes nothing here."
_REFUSED = "Not supported here."


class TextPart(ApiModel):
    type: Literal["text"]
    text: str


class CalledFunction(ApiModel):
    """arguments  JSON text, as in an answer"""

    name: str
    arguments: str
    parsed_arguments: Any = Field(None, exclude=True, description=_SENT_BACK)


class ToolCall(ApiModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, exclude=True, description=_SENT_BACK)


class ChatMessage(ApiModel):
    """A message of a conversation; assistant messages of earlier answers may be sent back as they came.

    Which role may have which field, chat_messages.py says."""

    role: Literal["system", "developer", "user", "assistant", "tool", "environment", "ipython"] = Field(
        description="The last two are what LMDeploy and Llama call tool.")
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = Field(None, description="For chat templates that write it; most do not.")
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    parsed: Any = Field(None, exclude=True, description=_SENT_BACK)
    annotations: list[Any] | None = Field(None, description=_SENT_BACK)
    refusal: None = Field(None, description="No answer of this server has one.")
    audio: None = Field(None, description=_REFUSED)
    function_call: None = Field(None, description=_REFUSED)


class ChatRequest(SamplingFields, FormatFields):
    """See https://platform.openai.com/docs/api-reference/chat/create. What OpenAI does not have stands at the end."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | str = Field(
        description="A text is continued as it is, without the model's chat template.")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="Absent: what the context allows.")
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = Field(None, description="Absent: auto where there are tools.")
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    user: str | None = Field(None, description=_UNUSED)
    safety_identifier: str | None = Field(None, description=_UNUSED)
    metadata: Metadata | None = Field(None, description=_UNUSED)
    prompt_cache_key: str | None = Field(None, description=_UNUSED)
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = Field(None, description=_UNUSED)
    prediction: dict[str, Any] | None = Field(None, description=_UNUSED)
    store: Literal[False] | None = Field(None, description="Only false: nothing is stored.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one tier.")
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    verbosity: Literal["medium"] | None = Field(None, description="Only medium: there is no other.")
    reasoning_effort: Literal["none"] | None = Field(None, description="Only none: there is no other.")
    audio: None = Field(None, description=_REFUSED)
    web_search_options: None = Field(None, description=_REFUSED)
    function_call: None = Field(None, description="Not supported here; use tool_choice.")
    functions: None = Field(None, description="Not supported here; use tools.")

    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the model's chat template.")
    session_id: int | None = Field(None, ge=-1, lt=2**63, description=(
        "Accepted for LMDeploy's clients; changes nothing: each request brings its whole conversation."))


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobWithTop(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprobWithTop] | None
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "abort"]


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
