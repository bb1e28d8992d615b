"""Tool schema: `tools` and `tool_choice` of a chat, field by field as in OpenAI's reference. Used by chat_schema.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from backend.serving.openai.sampling_fields import ApiModel
from backend.text.tools.tool_plan import MAX_TOOLS


class FunctionDeclaration(ApiModel):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description=(
        "JSON schema of the arguments, which every call follows; absent, the function takes none."))
    strict: bool | None = Field(None, description="Calls follow the schema in any case.")


class Tool(ApiModel):
    type: Literal["function"]
    function: FunctionDeclaration


class FunctionName(ApiModel):
    name: str


class NamedTool(ApiModel):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(ApiModel):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(ApiModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice
