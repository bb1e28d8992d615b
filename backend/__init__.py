"""Millrace's engine. `from backend import LLM, SamplingParams`; importing the package alone loads no torch."""

from backend.requests import SamplingParams

__all__ = ["LLM", "SamplingParams"]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from backend.engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'backend' has no attribute {name!r}")
