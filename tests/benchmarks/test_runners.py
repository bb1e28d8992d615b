"""Runners: our engine does the work that it is given. Where the others are installed is another machine's matter."""

from __future__ import annotations

import pytest
from click import ClickException

from backend.config import EngineConfig
from benchmarks.peers import start_peer
from benchmarks.prompts import random_prompt
from benchmarks.runners import MillraceRunner, Settings
from benchmarks.shapes import RandomModel
from tests.benchmarks.tiny import TINY


@pytest.mark.usefixtures("on_cpu")
def test_millrace_gives_every_request_its_tokens_and_tells_when_the_first_came():
    runner = MillraceRunner(RandomModel(TINY, EngineConfig(session_len=1)), Settings(session_len=64, max_batch_size=2))
    for _ in range(2):  # request ids are not used twice
        generation = runner.generate([random_prompt(seed, 5 + seed, TINY.vocab_size) for seed in range(3)], [4, 1, 7])
        assert generation.num_tokens == [4, 1, 7]
        assert 0 < generation.first_token_s < generation.seconds
    runner.close()


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
def test_an_engine_that_is_not_installed_is_named(engine, tmp_path):
    try:
        __import__(engine)
    except ImportError:
        with pytest.raises(ClickException, match=f"pip install {engine}"):
            start_peer(engine, tmp_path, Settings(session_len=64, max_batch_size=2))
    else:
        pytest.skip(f"{engine} is installed")


@pytest.mark.parametrize(("engine", "policy"), [("transformers", 8), ("vllm", 4)])
def test_a_kv_format_that_an_engine_lacks_is_refused(engine, policy, tmp_path):
    with pytest.raises(ClickException, match="--quant_policy"):
        start_peer(engine, tmp_path, Settings(session_len=64, max_batch_size=2, quant_policy=policy))
