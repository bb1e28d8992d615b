"""Strict JSON: what a client sends as JSON, or one kind of error for all that can be wrong with it.

Used by serving's models and protocols, which read it themselves."""

from __future__ import annotations

import json
import re
from typing import Any

# A pair of surrogates, as an escaped character beyond 2^16 has it, is looked at too and found well.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError, in words, for what is no JSON or no UTF-8, is nested too deeply, or
    holds a lone surrogate, which could be neither passed on nor quoted in an answer."""
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds a lone surrogate and is not valid Unicode") from None
    return value
