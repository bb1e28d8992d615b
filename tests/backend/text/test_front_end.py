"""What an answer shows, and which of its tokens a session keeps when a stop text ends it."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.requests import FinishReason, GenerateOutput, SamplingParams
from backend.text.front_end import Answer

PROPERTY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = st.lists(st.sampled_from(["the", " fox", " ", "\n", "从", "😀", "👧", "é", "  "]), max_size=8).map("".join)


@PROPERTY
@given(before=PIECES, stop=st.sampled_from(["😀", "👧é", "从前", "é", "fox\n"]), after=PIECES)
def test_kept_tokens_are_shown_text_and_no_part_of_a_character(tokenizer, before, stop, after):
    ids = tokenizer.encode(before + stop + after)
    answer = Answer(tokenizer, SamplingParams(stop=(stop,)), ())
    shown = ""
    for position, token_id in enumerate(ids):
        is_last = position == len(ids) - 1
        output = answer.push(GenerateOutput("a", (token_id,), FinishReason.LENGTH if is_last else None))
        shown += output.text
        if output.finish_reason is FinishReason.STOP:
            break
    assert output.finish_reason is FinishReason.STOP
    assert shown == tokenizer.decode(ids).partition(stop)[0]
    assert shown.startswith(tokenizer.decode(ids[:answer.num_kept_tokens]))
