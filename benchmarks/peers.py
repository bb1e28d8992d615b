"""Peers: transformers, vLLM and LMDeploy as runners, each through its own offline Python API.

All run a Hugging Face folder, with prefix caching off, and are imported only when they are asked for: none of them is
needed to use Millrace. Used by throughput.py."""

from __future__ import annotations

import asyncio
import gc
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
import torch

from benchmarks.runners import Generation, Runner, Settings


def start_peer(name: str, folder: Path, settings: Settings) -> Runner:
    """The engine `name` with the checkpoint in `folder`. Raises ClickException where it is not installed."""
    return {"transformers": TransformersRunner, "vllm": VllmRunner, "lmdeploy": LmdeployRunner}[name](folder, settings)


class TransformersRunner:
    """transformers' generate with a static cache, whose decode step it compiles.

    It has no continuous batching in generate: requests of different lengths would be padded to the longest."""

    compiles_per_shape = True
    tests = ("a1", "a16", "b")

    def __init__(self, folder: Path, settings: Settings) -> None:
        if settings.quant_policy:
            raise click.ClickException("transformers has no quantised static cache; use --quant_policy 0")
        transformers = _installed("transformers")
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to("cuda").eval()
        self.model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(self, prompts: list[tuple[int, ...]], new_tokens: list[int]) -> Generation:
        """See Runner.generate. All prompts have one length, and all completions."""
        (num_new,) = set(new_tokens)
        begin = time.perf_counter()
        ids = torch.tensor(prompts, device="cuda")
        output = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False,
                                     pad_token_id=0, cache_implementation="static")
        num_tokens = [len(row) - ids.shape[1] for row in output.tolist()]  # reads them, so the device is done
        return Generation(num_tokens, time.perf_counter() - begin)

    def close(self) -> None:
        """See Runner.close."""
        del self.model
        _free()


class VllmRunner:
    """vLLM with its defaults, but for the prefix cache and what the work needs."""

    compiles_per_shape = False
    tests = ("a1", "a16", "a64", "a256", "b", "c", "d1", "d16", "short")

    def __init__(self, folder: Path, settings: Settings) -> None:
        if settings.quant_policy == 4:
            raise click.ClickException("vLLM has no 4-bit KV cache; use --quant_policy 8, which is fp8 there, or 0")
        self.vllm = _installed("vllm")
        self.llm = self.vllm.LLM(
            model=str(folder), skip_tokenizer_init=True, dtype="auto", max_model_len=settings.session_len,
            max_num_seqs=settings.max_batch_size, enable_prefix_caching=False,
            kv_cache_dtype="fp8" if settings.quant_policy else "auto")

    def generate(self, prompts: list[tuple[int, ...]], new_tokens: list[int]) -> Generation:
        """See Runner.generate."""
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        sampling = [self.vllm.SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False)
                    for num_new in new_tokens]
        begin = time.perf_counter()
        outputs = self.llm.generate(inputs, sampling, use_tqdm=False)
        return Generation([len(output.outputs[0].token_ids) for output in outputs], time.perf_counter() - begin)

    def close(self) -> None:
        """See Runner.close."""
        del self.llm
        _free()


class LmdeployRunner:
    """LMDeploy's TurboMind engine without its pipeline, which takes texts and no token ids."""

    compiles_per_shape = False
    tests = VllmRunner.tests

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.lmdeploy = _installed("lmdeploy")
        config = self.lmdeploy.TurbomindEngineConfig(
            dtype="auto", session_len=settings.session_len, max_batch_size=settings.max_batch_size,
            quant_policy=settings.quant_policy, enable_prefix_caching=False)
        self.engine = _installed("lmdeploy.turbomind").TurboMind.from_pretrained(str(folder), engine_config=config)
        self._num_sessions = 0

    def generate(self, prompts: list[tuple[int, ...]], new_tokens: list[int]) -> Generation:
        """See Runner.generate."""
        begin = time.perf_counter()
        num_tokens = asyncio.run(self._all(prompts, new_tokens))
        return Generation(num_tokens, time.perf_counter() - begin)

    async def _all(self, prompts: list[tuple[int, ...]], new_tokens: list[int]) -> list[int]:
        return await asyncio.gather(*map(self._one, prompts, new_tokens))

    async def _one(self, prompt: tuple[int, ...], num_new: int) -> int:
        self._num_sessions += 1
        sampling = self.lmdeploy.GenerationConfig(max_new_tokens=num_new, do_sample=False, ignore_eos=True)
        count = 0
        async for output in self.engine.create_instance().async_stream_infer(
                self._num_sessions, input_ids=list(prompt), gen_config=sampling, sequence_start=True,
                sequence_end=True, stream_output=False):
            count += len(output.token_ids)
        return count

    def close(self) -> None:
        """See Runner.close."""
        self.engine.close()
        del self.engine
        _free()


def _installed(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise click.ClickException(f"--engine {package} needs it installed: pip install {package} ({error})") from None


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
