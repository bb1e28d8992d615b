from __future__ import annotations

import pytest

from backend.errors import RequestError
from backend.serving.long_text import num_characters


def test_messages_that_are_nested_too_deeply_are_refused():
    nested: list = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(RequestError, match="nested too deeply; send flatter ones"):
        num_characters([{"role": "user", "content": nested}])
