"""First token: the process that start.py times. It loads a model, generates, and says when it got how far.

    python -m benchmarks.first_token millrace FOLDER BEGIN_S

BEGIN_S is time.time() when the process was started. What it prints last is one JSON object of seconds. Imports stand
inside functions, since they are part of what is timed."""

from __future__ import annotations

import json
import sys
import time

PROMPT_TOKENS = 32
NEW_TOKENS = 8


def main(engine: str, folder: str, begin_s: float) -> None:
    phases, first_s, next_s = ENGINES[engine](folder, begin_s)
    print(json.dumps({"phases": phases, "first_token_at": first_s - begin_s, "next_prompt": next_s}))


def millrace(folder: str, begin_s: float) -> tuple[dict[str, float], float, float]:
    """Seconds of each phase, when the first token came, and in how many seconds it comes to a second prompt."""
    import logging

    from backend import LLM, SamplingParams
    from backend.logs import configure_logging

    configure_logging(logging.INFO)
    sampling = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    llm = LLM(folder, "base")
    ready_s = time.time()

    def first_token(first_id: int) -> float:
        stream = llm.stream(list(range(first_id, first_id + PROMPT_TOKENS)), sampling)
        next(stream)
        when_s = time.time()
        assert 1 + sum(len(increment.output.token_ids) for increment in stream) == NEW_TOKENS
        return when_s

    first_s = first_token(100)
    second_begin_s = time.time()
    next_s = first_token(1000) - second_begin_s
    phases = dict(llm.engine.executor.worker.start.seconds)
    phases["other"] = ready_s - begin_s - sum(phases.values())
    return {**phases, "first token": first_s - ready_s}, first_s, next_s


def transformers(folder: str, begin_s: float) -> tuple[dict[str, float], float, float]:
    """The same of transformers, on a GPU as it is used there: bf16, no compilation."""
    import torch
    from transformers import AutoModelForCausalLM

    imported_s = time.time()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
    torch.cuda.synchronize()
    ready_s = time.time()

    def first_token(first_id: int) -> float:
        ids = torch.arange(first_id, first_id + PROMPT_TOKENS, device="cuda")[None]
        model.generate(ids, max_new_tokens=1, do_sample=False, pad_token_id=0).tolist()
        return time.time()

    first_s = first_token(100)
    second_begin_s = time.time()
    next_s = first_token(1000) - second_begin_s
    return {"imports": imported_s - begin_s, "weights": ready_s - imported_s, "first token": first_s - ready_s
            }, first_s, next_s


ENGINES = {"millrace": millrace, "transformers": transformers}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
