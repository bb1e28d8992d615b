"""Format fields: what an answer has to look like, OpenAI's `response_format` and our regex, choice and grammar.

Used by the schemas of chats and completions; what they mean is said by backend.text.grammar."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from backend.errors import RequestError
from backend.serving.openai.errors import ApiError
from backend.serving.openai.sampling_fields import ApiModel
from backend.text.grammar import grammar_of


class NamedSchema(ApiModel):
    name: str
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Answers follow the schema in any case.")


class TextFormat(ApiModel):
    type: Literal["text"]


class JsonObjectFormat(ApiModel):
    type: Literal["json_object"]


class JsonSchemaFormat(ApiModel):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class FormatFields(ApiModel):
    """At most one of them, beside response_format: null is as good as absent."""

    regex: str | None = Field(None, description="What the whole answer matches.")
    choice: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="The answer is one of these texts.")
    grammar: str | None = Field(None, description="What the answer follows, a Lark grammar in llguidance's dialect.")

    def answer_grammar(self, response_format: ResponseFormat | None = None) -> str | None:
        """As SamplingParams takes it. Raises ApiError 400 with the field's name."""
        asked = {"response_format": response_format and response_format.model_dump(by_alias=True, exclude_none=True),
                 "regex": self.regex, "choice": self.choice, "grammar": self.grammar}
        try:
            return grammar_of(**asked)
        except RequestError as error:
            raise ApiError(400, str(error), code="invalid_value", param=self.format_field(response_format)) from None

    def format_field(self, response_format: ResponseFormat | None = None) -> str | None:
        """The field that says what the answer has to look like, for errors about it."""
        if response_format is not None:
            return "response_format"
        return next((name for name in ("regex", "choice", "grammar") if getattr(self, name) is not None), None)
