"""Responses schema: the request and the answer of /v1/responses, field by field as in OpenAI's reference, for text.

A field of type None is OpenAI's and not supported: null is accepted, anything else refused with its name. Fields that
change nothing about the answer of this server are accepted and say so. Used by responses.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from backend.serving.openai.sampling_fields import ApiModel, Metadata, SamplingFields
from backend.serving.openai.tool_schema import FunctionDeclaration
from backend.text.tools.tool_plan import MAX_TOOLS

_UNUSED = "Accepted; changes nothing here."
_REFUSED = "Not supported here."


class InputText(ApiModel):
    """A part of a message; parts of earlier answers may be sent back as they came."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, description=_UNUSED)
    logprobs: list[Any] | None = Field(None, description=_UNUSED)


class InputRefusal(ApiModel):
    type: Literal["refusal"]
    refusal: str


Part = Annotated[InputText | InputRefusal, Field(discriminator="type")]
Status = Literal["in_progress", "completed", "incomplete"]


class InputMessage(ApiModel):
    """A message, of a new turn or of an earlier one."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], Field(fail_fast=True)]
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = Field(None, description=_UNUSED)


class FunctionCallItem(ApiModel):
    """A call that an earlier answer made. arguments: JSON text."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionCallOutputItem(ApiModel):
    """What the called function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[Part], Field(fail_fast=True)]
    id: str | None = None
    status: Status | None = None


def _kind(item: Any) -> str | None:
    """An item without a type is a message."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")], Discriminator(_kind)]


def _only_functions(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "function":
        raise ValueError(f"{kind[:64]!r} is built into other servers; only function tools are supported")
    return kind


class FunctionTool(FunctionDeclaration):
    """A function as in chats, without an object around it."""

    type: Annotated[Literal["function"], BeforeValidator(_only_functions)]

    def as_chat_tool(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type"})}


class NamedFunction(ApiModel):
    type: Literal["function"]
    name: str

    def as_chat_choice(self) -> dict[str, Any]:
        return {"type": "function", "function": {"name": self.name}}


class AllowedFunctions(ApiModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1, max_length=MAX_TOOLS)]

    def as_chat_choice(self) -> dict[str, Any]:
        return {"type": "allowed_tools",
                "allowed_tools": {"mode": self.mode, "tools": [tool.as_chat_choice() for tool in self.tools]}}


class PlainFormat(ApiModel):
    type: Literal["text", "json_object"]


class SchemaFormat(ApiModel):
    """strict: the answer follows the schema in either case."""

    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = Field(None, description=_UNUSED)


class TextConfig(ApiModel):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = Field(None, description="Only medium: there is no other.")

    def response_format(self) -> dict[str, Any] | None:
        """As chats have it."""
        if isinstance(self.format, SchemaFormat):
            return {"type": "json_schema", "json_schema": {"name": self.format.name, "schema": self.format.schema_}}
        return None if self.format is None else self.format.model_dump()


class Reasoning(ApiModel):
    effort: Literal["none"] | None = Field(None, description="Only none: there is no other.")
    summary: None = Field(None, description=_REFUSED)
    generate_summary: None = Field(None, description=_REFUSED)


class ResponseStreamOptions(ApiModel):
    include_obfuscation: Literal[False] | None = Field(None, description="Only false: nothing is added to events.")


Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class RetrieveQuery(BaseModel):
    """What is not named here is refused. An answer has what it was asked for when it was made."""

    model_config = ConfigDict(extra="forbid")
    include: list[Included] = Field([], description=_UNUSED)
    include_brackets: list[Included] = Field([], alias="include[]", description="As OpenAI's clients write include.")
    stream: bool = Field(False, description="Only false: an answer is stored once it is whole.")


class ItemsQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    include: list[Included] = Field([], description=_UNUSED)
    include_brackets: list[Included] = Field([], alias="include[]", description="As OpenAI's clients write include.")


class ResponseRequest(SamplingFields):
    """See https://platform.openai.com/docs/api-reference/responses/create. Besides, the fields of SamplingFields."""

    model: str | None = Field(None, description="Absent: the model that is served.")
    input: str | Annotated[list[InputItem], Field(min_length=1, fail_fast=True)] = Field(
        description="A text is the user's message.")
    instructions: str | None = Field(None, description="A system message before all others, in this answer only.")
    previous_response_id: str | None = Field(
        None, description="The conversation up to and with that answer comes before input.")
    store: bool | None = Field(
        None, description="Absent: true. Answers are kept in memory until younger ones need the place.")
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31, description="Absent: what the context allows.")
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions | None = Field(
        None, description="Absent: auto where there are tools.")
    parallel_tool_calls: bool | None = Field(None, description="Absent: true.")
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Annotated[list[Included], Field(fail_fast=True)] | None = Field(
        None, description="Logprobs of the text; there is no encrypted reasoning to include.")
    truncation: Literal["disabled"] | None = Field(None, description="Only disabled: too long is an error.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the model's chat template.")

    n: Literal[1] | None = Field(None, description="There is one answer.")
    user: str | None = Field(None, description=_UNUSED)
    safety_identifier: str | None = Field(None, description=_UNUSED)
    metadata: Metadata | None = Field(None, description="Stands in the answer; changes nothing else.")
    prompt_cache_key: str | None = Field(None, description=_UNUSED)
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = Field(None, description=_UNUSED)
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one tier.")
    max_tool_calls: int | None = Field(None, ge=1, description="Of built-in tools, of which there are none.")
    reasoning: Reasoning | None = None
    background: Literal[False] | None = Field(None, description="Only false: an answer is waited for.")
    conversation: None = Field(None, description="Not supported here; use previous_response_id.")
    prompt: None = Field(None, description=_REFUSED)
    context_management: None = Field(None, description=_REFUSED)
    moderation: None = Field(None, description=_REFUSED)


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Logprob]


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class InputTokensDetails(BaseModel):
    """cache_write_tokens: 0, nothing is billed for what the prefix cache takes."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(BaseModel):
    code: str
    message: str


class IncompleteDetails(BaseModel):
    """reason: max_output_tokens, or abort where /v1/abort ended it."""

    reason: str


class ResponseObject(BaseModel):
    """An answer; what echoes the request has the values that were used."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage | None
    instructions: str | None
    previous_response_id: str | None
    store: bool
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    truncation: Literal["disabled"]
    background: bool
    service_tier: str
    metadata: dict[str, str]


class InputItemList(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]
