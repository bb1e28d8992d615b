"""SamplingParams: what is taken as it is meant, and what is refused in words."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from backend.errors import RequestError
from backend.requests import _ALLOWED, SamplingParams


def test_one_text_is_one_stop_text_and_one_bad_word():
    params = SamplingParams(stop="rabbit", bad_words="fox")
    assert (params.stop, params.bad_words) == (("rabbit",), ("fox",))


def test_lists_are_taken_for_tuples():
    params = SamplingParams(stop=["a", "b"], bad_words=[[1, 2], "c"], stop_ids=[3], logit_bias=[[4, 0.5]])
    assert (params.stop, params.bad_words) == (("a", "b"), ((1, 2), "c"))
    assert (params.stop_ids, params.logit_bias) == ((3,), ((4, 0.5),))
    assert hash(params)


def test_every_field_is_checked():
    assert _ALLOWED.keys() == {field.name for field in dataclasses.fields(SamplingParams)}
    for name in _ALLOWED:
        with pytest.raises(RequestError, match=f"^{name}="):
            SamplingParams(**{name: object()})


@pytest.mark.parametrize(("values", "message"), [
    ({"temperature": "hot"}, r"temperature='hot' does not work; use a number in 0..100 \(0 is greedy\)"),
    ({"temperature": float("nan")}, "temperature=nan is out of range"),
    ({"top_p": 0}, r"top_p=0 is out of range; use a number in \(0, 1\]"),
    ({"top_k": 2.5}, "top_k=2.5 is out of range; use an integer >= 0"),
    ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 is out of range; use an integer >= 0"),
    ({"max_new_tokens": True}, "max_new_tokens=True"),
    ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens=5 is out of range; use in 0..max_new_tokens"),
    ({"seed": "x"}, "seed='x' does not work; use an integer in 0..2"),
    ({"seed": -1}, "seed=-1 is out of range"),
    ({"stop": ""}, "each of 1 to 1,024 characters"),
    ({"stop": "x" * 1025}, r"^stop=\('xxxx.{,40}\) does not work; use .* of 1 to 1,024 characters"),
    ({"stop": ("x",) * 257}, r"^stop=\('x', 'x', .{,40}\) does not work; use .* of up to 256 texts"),
    ({"stop": (3,)}, r"stop=\(3,\) does not work; use a text, or a tuple of up to 256 texts"),
    ({"bad_words": (5,)}, "a tuple of up to 1,024 texts or tuples of token ids"),
    ({"bad_words": ((),)}, "each of 1 to 256 characters or ids"),
    ({"bad_words": ((7,) * 257,)}, "each of 1 to 256 characters or ids"),
    ({"bad_words": ((7,),) * 1025}, "a tuple of up to 1,024 texts"),
    ({"stop_ids": ("a",)}, "a tuple of up to 1,024 token ids"),
    ({"stop_ids": (7,) * 1025}, "a tuple of up to 1,024 token ids"),
    ({"logit_bias": ((3, float("nan")),)}, r"pairs of a token id and a bias in \[-1e9, 1e9\]"),
    ({"logit_bias": ((3, 1e300),)}, r"pairs of a token id and a bias in \[-1e9, 1e9\]"),
    ({"logit_bias": {3: 1.0}}, "pairs of a token id and a bias"),
    ({"repetition_penalty": 1e-38}, r"repetition_penalty=1e-38 is out of range; use a number in \[0.01, 100\]"),
    ({"repetition_penalty": float("nan")}, "repetition_penalty=nan is out of range"),
    ({"ignore_eos": "no"}, "use True or False"),
])
def test_a_wrong_value_is_refused_in_words(values, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**values)


def test_the_least_repetition_penalty_may_come_in_float32():
    as_float32 = struct.unpack("f", struct.pack("f", 0.01))[0]
    assert as_float32 < 0.01 and SamplingParams(repetition_penalty=as_float32).repetition_penalty == as_float32
