"""Grammar compiler: a model's tokens as llguidance sees them, and grammars made into matchers over them.

A matcher follows one completion: it says which tokens may come next, and takes the one that came. It bounds its own
work; what it cannot bound (some schemas, deep rules) grammar_check.py finds out before a grammar gets here.
Used by grammar_check.py and worker/grammar_rows.py; imports no torch."""

from __future__ import annotations

import re

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from backend.errors import RequestError
from backend.text.tokenizer import Tokenizer

# A byte that joins no other in a token, in front of a text whose first token must not be one of a text's beginning.
_ANCHOR = "\x02"
_QUOTED = re.compile(r"\n\s*\d+ \| |<state>|<backtrace>|<non-verbose/>")
_PLACE = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")  # in our text, which the caller has not seen
_ONE_OF = re.compile(r"oneOf constraints are not supported\. Enable .*")
# What one step may cost at most is some 10 ms; the sizes of states keep a matcher within some 100 MB.
_LIMITS = LLParserLimits(max_items_in_row=10_000, initial_lexer_fuel=1_000_000, step_lexer_fuel=100_000,
                         step_max_items=50_000, max_lexer_states=50_000, max_grammar_size=100_000,
                         verbose_errors=False)


class GrammarCompiler:
    """Compiles for one model; may be used by several threads.

    vocab_size  rows of the logits; ids that have no token may never come"""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.end_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(tokenizer.special_ids)
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(tokenizer, vocab_size, self.end_id)),
                                      n_vocab=vocab_size, eos_token=[self.end_id])

    def compile(self, grammar: str) -> LLMatcher:
        """A matcher before the first token. Raises RequestError, in one line, for a grammar that does not work."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise RequestError(f"the grammar or schema does not work: {reason(matcher)}")
        return matcher


def reason(matcher: LLMatcher) -> str:
    """Why a matcher failed, in one line, without what it quotes of the grammar below and options of the
    library."""
    text = " ".join(_QUOTED.split(matcher.get_error())[0].split())
    return _ONE_OF.sub("oneOf works only where its schemas plainly exclude each other; use anyOf",
                       _PLACE.sub("", text))[:300]


class _Tokens:
    """What llguidance asks of a tokenizer: the bytes of each id, and the ids in which the model would write a text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_id: int) -> None:
        self.eos_token_id, self.bos_token_id = end_id, tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = [token_id for token_id in sorted(tokenizer.special_ids) if token_id < vocab_size]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        """Special tokens written in the text are text: only a rule that names one stands for it."""
        text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
        if not self._tokenizer.num_leading_spaces:
            return self._tokenizer.encode(text, parse_special=False)
        ids = self._tokenizer.encode(_ANCHOR + text, parse_special=False)
        num_anchor, anchor = 0, b""
        while anchor.lstrip(b" ") != _ANCHOR.encode() and num_anchor < len(ids):
            anchor += self._tokenizer.token_bytes(ids[num_anchor])
            num_anchor += 1
        return ids[num_anchor:]
