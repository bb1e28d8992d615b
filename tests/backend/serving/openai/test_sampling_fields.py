"""What all requests have in common: a body's faults cost no more than the body."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

from pydantic import ValidationError

from backend.serving.openai.chat_schema import ChatRequest
from backend.serving.openai.responses_schema import ResponseRequest
from backend.serving.openai.tokens import DetokenizeRequest, TokenizeRequest

MANY = 1000


@pytest.mark.parametrize("body, fields", [
    (ChatRequest, {"model": "m", "messages": [1] * MANY}),
    (ChatRequest, {"model": "m", "messages": [{"role": "user", "content": [1] * MANY}]}),
    (ChatRequest, {"model": "m", "messages": [{"role": "user", **{str(name): 0 for name in range(MANY)}}]}),
    (ChatRequest, {"model": "m", "messages": "a", "choice": [1] * MANY}),
    (ChatRequest, {"model": "m", "messages": "a", "metadata": {str(name): 0 for name in range(MANY)}}),
    (ChatRequest, {"model": "m", "messages": "a", "logit_bias": {f"a{name}": 0 for name in range(2 * MANY)}}),
    (ChatRequest, {"model": "m", "messages": "a", **{str(name): 0 for name in range(MANY)}}),
    (ChatRequest, {"model": "m", "messages": "a", "tools": [1] * MANY}),
    (ResponseRequest, {"input": [1] * MANY}),
    (TokenizeRequest, {"messages": [1] * MANY}),
    (DetokenizeRequest, {"tokens": [-1] * MANY})])
def test_a_thousand_faults_are_a_few_errors(body, fields):
    with pytest.raises(ValidationError) as error:
        body.model_validate(fields)
    assert len(error.value.errors()) < 5
