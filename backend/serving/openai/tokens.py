"""Token routes: /tokenize, /detokenize, /tokenizer_info and LMDeploy's /v1/encode. Text to token ids and back.

Needs no engine but for its limits. Used by app.py."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

from backend.errors import RequestError, TemplateError
from backend.serving.long_text import num_characters, read_text
from backend.serving.openai.context import ApiContext, Context
from backend.serving.openai.sampling_fields import ApiModel, TokenId

router = APIRouter(tags=["tokens"])

MAX_TEXTS = 4096


class TokenizeRequest(ApiModel):
    """A text, or a conversation as the model's chat template writes it: one of `prompt` and `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    add_generation_prompt: bool = Field(True, description="End a conversation with the header of the next answer.")
    add_special_tokens: bool | None = Field(
        None, description="Begin with BOS as the tokenizer does by itself; true for a prompt, false for messages, "
        "whose template writes its own.")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.prompt is not None and self.tools is not None:
            raise ValueError("tools are part of a conversation; give messages")
        return self


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int = Field(description="The longest prompt + completion, tokens.")
    tokens: list[int]
    token_strs: list[str] | None = Field(None, description="The tokens as the vocabulary writes them.")


class DetokenizeRequest(ApiModel):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2**20, fail_fast=True)]
    skip_special_tokens: bool = False


class DetokenizeResponse(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    """The tokenizer in the words of Hugging Face's tokenizer_config.json."""

    vocab_size: int
    model_max_length: int
    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token: str | None
    stop_token_ids: list[int] = Field(description="Ids that end an answer by themselves.")
    special_tokens: dict[str, int]
    chat_template: str | None = Field(description="The template in Jinja; null for a model without one.")


class EncodeRequest(ApiModel):
    """LMDeploy's. With do_preprocess a text is the user's message in a conversation of its own."""

    input: str | Annotated[list[str], Field(max_length=MAX_TEXTS, fail_fast=True)]
    do_preprocess: bool = False
    add_bos: bool = Field(True, description="With do_preprocess: whether the message begins its conversation.")


class EncodeResponse(BaseModel):
    """Of one text its ids and their number; of a list, lists of both."""

    input_ids: list[int] | list[list[int]]
    length: int | list[int]


@router.post("/tokenize")
async def tokenize(request: TokenizeRequest, context: Context) -> TokenizeResponse:
    """Token ids of a text or a conversation."""
    _check_model(request.model, context)
    front_end = context.front_end
    if request.messages is None:
        text, adds_special = request.prompt, request.add_special_tokens is not False
    else:
        text = await read_text(num_characters(request.messages, request.tools), front_end.template.render,
                               request.messages, request.tools, request.add_generation_prompt)
        adds_special = bool(request.add_special_tokens)
    ids = await read_text(len(text), front_end.tokenizer.encode, text, adds_special)
    strings = [front_end.tokenizer.id_to_token(token_id) or "" for token_id in ids]
    return TokenizeResponse(count=len(ids), max_model_len=context.engine.session_len, tokens=ids,
                            token_strs=strings if request.return_token_strs else None)


@router.post("/detokenize")
async def detokenize(request: DetokenizeRequest, context: Context) -> DetokenizeResponse:
    """Text of token ids, special tokens included."""
    _check_model(request.model, context)
    decode = context.front_end.tokenizer.decode
    try:
        text = await read_text(len(request.tokens), decode, request.tokens, request.skip_special_tokens)
    except RequestError as error:
        raise RequestError(f"tokens: {error}", "tokens") from None
    return DetokenizeResponse(prompt=text)


@router.get("/tokenizer_info")
async def tokenizer_info(context: Context) -> TokenizerInfo:
    """What a client needs to know of the tokenizer to count and cut tokens by itself."""
    front_end, tokenizer = context.front_end, context.front_end.tokenizer
    special = {tokenizer.id_to_token(token_id): token_id for token_id in sorted(tokenizer.special_ids)}

    def text(token_id: int | None) -> str | None:
        return None if token_id is None else tokenizer.id_to_token(token_id)

    return TokenizerInfo(
        vocab_size=tokenizer.vocab_size, model_max_length=context.engine.session_len,
        bos_token=text(tokenizer.bos_token_id), bos_token_id=tokenizer.bos_token_id,
        eos_token=text(tokenizer.eos_token_id), eos_token_id=tokenizer.eos_token_id,
        pad_token=front_end.tokenizer_settings.special_tokens.get("pad_token"),
        stop_token_ids=list(front_end.model.eos_token_ids), special_tokens=special,
        chat_template=_template(context))


@router.post("/v1/encode")
async def encode(request: EncodeRequest, context: Context) -> EncodeResponse:
    """LMDeploy's way to count tokens."""
    if isinstance(request.input, str):
        ids = await read_text(len(request.input), _encoded, request.input, request, context)
        return EncodeResponse(input_ids=ids, length=len(ids))
    size = sum(map(len, request.input))  # of all: many short texts are a long one
    each = [await read_text(size, _encoded, text, request, context) for text in request.input]
    return EncodeResponse(input_ids=each, length=[len(ids) for ids in each])


def _encoded(text: str, request: EncodeRequest, context: ApiContext) -> list[int]:
    front_end = context.front_end
    if request.do_preprocess:
        return front_end.turn_ids({"role": "user", "content": text}, is_first=request.add_bos)
    return front_end.prompt_ids(text) if request.add_bos else front_end.tokenizer.encode(text)


def _template(context: ApiContext) -> str | None:
    try:
        return context.front_end.template.source
    except TemplateError:
        return None


def _check_model(name: str | None, context: ApiContext) -> None:
    if name is not None:
        context.check_model(name)
