"""Text front end: texts and messages → requests, outputs → text. What every front end does, in one place.

Knows the tokenizer and the chat template of one model; knows no engine. Used by engine/llm.py and serving."""

from __future__ import annotations

import bisect
import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backend.errors import RequestError
from backend.model_source import ModelSource
from backend.requests import FinishReason, GenerateOutput, GenerateRequest, SamplingParams, TokenLogprobs
from backend.text.chat_template import ChatTemplate
from backend.text.detokenizer import Detokenizer
from backend.text.stop_words import StopWords
from backend.text.tokenizer import Tokenizer
from backend.text.tools.call_grammar import call_grammar
from backend.text.tools.content_stop_words import ContentStopWords
from backend.text.tools.tool_format import CALL_END, ToolFormat, find_format
from backend.text.tools.tool_plan import ToolPlan
from backend.tokenizer_files import TokenizerSettings, read_settings

if TYPE_CHECKING:
    from backend.text.grammar_check import GrammarChecker

Message = Mapping[str, Any]


class TextFrontEnd:
    """Everything between text and token ids for the model of `source`."""

    def __init__(self, source: ModelSource, template: ChatTemplate | None = None) -> None:
        """template: instead of the model's own."""
        self.model = source.model
        self._given_template = template
        self.tokenizer = Tokenizer(source.tokenizer_dir)
        self._tokenizer_dir = source.tokenizer_dir

    @cached_property
    def grammars(self) -> GrammarChecker:
        """Its process starts with the first grammar."""
        from backend.text.grammar_check import GrammarChecker

        return GrammarChecker(self._tokenizer_dir, self.model.vocab_size)

    @cached_property
    def template(self) -> ChatTemplate:
        """Read when a conversation first needs it: plain completion works without one."""
        return self._given_template or ChatTemplate.load(self._tokenizer_dir, self.model.model_name)

    @cached_property
    def tokenizer_settings(self) -> TokenizerSettings:
        """What the tokenizer's small files say."""
        return read_settings(self._tokenizer_dir)

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Ids of a plain prompt, begun with the start token; given ids are taken as they are. Never empty."""
        if not isinstance(prompt, str):
            return list(prompt)
        ids = self.tokenizer.encode(prompt, add_special_tokens=True)
        if not ids and self.model.bos_token_id is not None:
            ids = [self.model.bos_token_id]
        return ids

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None,
                 variables: Mapping[str, Any] | None = None) -> list[int]:
        """Ids of a whole conversation, ready for the assistant to answer; variables: see ChatTemplate.render."""
        return self.tokenizer.encode(self.template.render(messages, tools, variables=variables))

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes calls; None where it does not, or in a way not known here."""
        return find_format(self.template, self.tokenizer)

    def turn_ids(self, message: Message, is_first: bool) -> list[int]:
        """Ids that one more message adds to a conversation whose earlier part the engine holds."""
        return self.tokenizer.encode(self.template.render_turn(message, is_first=is_first))

    def chat_sampling(self, sampling: SamplingParams,
                      tools: Sequence[Mapping[str, Any]] | None = None) -> SamplingParams:
        """With the texts that end an answer in this model's template: as ids where they are tokens, else as text.

        tools  where there are some, special tokens stay in the text: they mark where a call begins and ends"""
        if tools:
            sampling = dataclasses.replace(sampling, skip_special_tokens=False)
        if sampling.ignore_eos:
            return sampling
        ids, texts = self.template.stop_tokens(self.tokenizer)
        return dataclasses.replace(sampling, stop_ids=tuple(dict.fromkeys((*sampling.stop_ids, *ids))),
                                   stop=tuple(dict.fromkeys((*sampling.stop, *texts))))

    def tool_sampling(self, sampling: SamplingParams, plan: ToolPlan) -> SamplingParams:
        """chat_sampling for an answer that may call functions, whose text a CallParser of tool_format reads.

        A grammar that is there already is what an answer without calls has to follow. Raises RequestError where the
        model's calls cannot be read, or a stop id could end one in its middle."""
        if self.tool_format is None:
            raise RequestError("how this model writes calls is not known here; leave tools out, or use a model that "
                               "writes them as InternLM2.5, Llama 3.1, Qwen2.5 or Qwen3 do")
        ordinary = [token_id for token_id in sampling.stop_ids if token_id not in self.tokenizer.special_ids]
        if ordinary:
            raise RequestError(f"stop_ids beside tools may only be special tokens, which {reprlib.repr(ordinary)} are "
                               "not: a call may need them; use stop, which looks at no call", "stop_ids")
        grammar = call_grammar(self.tool_format, plan, sampling.grammar)
        chat = self.chat_sampling(dataclasses.replace(sampling, grammar=grammar), plan.tools)
        # The end of a call is not yet the end of the answer: the grammar says what may follow it.
        call_end = self.tokenizer.token_to_id(CALL_END)
        return dataclasses.replace(chat, stop_ids=tuple(token_id for token_id in chat.stop_ids
                                                        if token_id != call_end or token_id in sampling.stop_ids))

    def resolved(self, sampling: SamplingParams) -> SamplingParams:
        """With bad words given as text turned into the token sequences that spell them, alone and after a space.

        Checks the grammar, which takes milliseconds, at most a second, and nothing if it was checked lately: a server
        does that in a thread first (check_grammar). Raises RequestError where it does not work."""
        self.check_grammar(sampling.grammar)
        words: list[tuple[int, ...]] = []
        for word in sampling.bad_words:
            spellings = (word, " " + word.lstrip()) if isinstance(word, str) else ()
            words += [tuple(self.tokenizer.encode(text)) for text in spellings] or [word]
        return dataclasses.replace(sampling, bad_words=tuple(dict.fromkeys(words)))

    def check_grammar(self, grammar: str | None) -> None:
        """See GrammarChecker.check."""
        if grammar is not None:
            self.grammars.check(grammar)

    def answer(self, request: GenerateRequest, continues_prompt: bool, has_tools: bool = False) -> Answer:
        """Collects the text of a request's outputs.

        continues_prompt  the text goes on where a plain prompt stops, its first space included; an answer in a
                          conversation is a text of its own
        has_tools         it is sampled by tool_sampling: stop texts count in its content, not in its calls"""
        stop = request.sampling.stop
        stop_words = ContentStopWords(stop, self.tool_format) if has_tools and stop else StopWords(stop)
        return Answer(self.tokenizer, request.sampling, request.token_ids if continues_prompt else (), stop_words)


@dataclass(frozen=True, slots=True)
class TextOutput:
    """One increment of an answer.

    text             new text, final: it will not be taken back
    output           the engine's increment it came with
    finish_reason    None while it goes on; stop also where a stop text was met
    num_kept_tokens  completion tokens that a session remembers: without the id, or the stop text, that ended it
    logprobs         where asked for: of the tokens whose text is complete with this increment. The id that ended the
                     answer is not among them, nor is what lies in a stop text
    end_logprob      of the id that ended the answer, which has no text"""

    text: str
    output: GenerateOutput
    finish_reason: FinishReason | None
    num_kept_tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    end_logprob: TokenLogprobs | None = None


class Answer:
    """The text of one request as it grows: detokenised, held back where it could become a stop text, cut there."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, prompt_ids: Sequence[int],
                 stop_words: StopWords) -> None:
        self._detokenizer = Detokenizer(tokenizer, sampling.skip_special_tokens, prompt_ids)
        self._stop_words = stop_words
        self._min_new_tokens = sampling.min_new_tokens
        self._num_characters = 0
        self._ends: list[int] = []  # per token: characters of text up to and with it
        self._logprobs: list[TokenLogprobs] = []  # of all tokens so far, where asked for
        self._num_given = 0  # of them
        self.num_kept_tokens = 0  # completion tokens that lie wholly before the stop text which ended it

    @property
    def is_cut(self) -> bool:
        """Whether a stop text has ended it, which the engine, and with it a session, has to be told of."""
        return self._stop_words.matched is not None

    def push(self, output: GenerateOutput) -> TextOutput:
        """Takes the next output. After a finish_reason nothing more may be pushed."""
        text = self._push_tokens(output)
        is_cut = self.is_cut
        reason = FinishReason.STOP if is_cut else output.finish_reason
        # A grammar that is complete ends an answer without an id of its own.
        has_end_id = output.finish_reason is FinishReason.STOP and bool(output.token_ids)
        num_kept = self.num_kept_tokens if is_cut else output.num_completion_tokens - has_end_id
        if not output.logprobs and not self._logprobs:
            return TextOutput(text, output, reason, num_kept)
        self._logprobs += output.logprobs
        if is_cut:
            num_final = self.num_kept_tokens
        elif reason is not None:
            num_final = len(self._logprobs) - has_end_id
        else:
            num_final = bisect.bisect_right(self._ends, self._stop_words.num_shown)
        begin, self._num_given = self._num_given, max(self._num_given, num_final)
        end_logprob = self._logprobs[-1] if has_end_id and not is_cut else None
        return TextOutput(text, output, reason, num_kept, tuple(self._logprobs[begin:num_final]), end_logprob)

    def _push_tokens(self, output: GenerateOutput) -> str:
        """The text that may be shown after these tokens."""
        is_over = output.finish_reason is not None
        text = ""
        for index, token_id in enumerate(output.token_ids):
            ended_here = output.finish_reason is FinishReason.STOP and index == len(output.token_ids) - 1
            # The id that ended the answer is no part of its text.
            piece = "" if ended_here else self._detokenizer.push([token_id])
            if is_over and index == len(output.token_ids) - 1:
                piece += self._detokenizer.flush()
            text += self._show(piece)
            if self.is_cut:
                return text
        if is_over:
            if not output.token_ids:
                text += self._show(self._detokenizer.flush())
            if not self.is_cut:
                text += self._stop_words.flush()
                self._count_kept_tokens()
        return text

    def _show(self, piece: str) -> str:
        """What of a token's text may be shown."""
        self._num_characters += len(piece)
        # A token that begins a character ends where that character will, at least one further.
        self._ends.append(self._num_characters + self._detokenizer.is_inside_character)
        if len(self._ends) <= self._min_new_tokens:
            self._stop_words.num_free = self._num_characters
        shown = self._stop_words.push(piece)
        self._count_kept_tokens()
        return shown

    def _count_kept_tokens(self) -> None:
        if self.is_cut:
            self.num_kept_tokens = bisect.bisect_right(self._ends, self._stop_words.match_start)
