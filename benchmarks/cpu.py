"""Generation on the CPU, against transformers in the same run: `python -m benchmarks.cpu`.

Greedy, the same prompts and token counts, float32, the demo model. transformers runs a LLaMA model that holds the same
weights (InternLM2's own code would be remote code), which gives the same tokens: that is checked, not assumed."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import torch

from backend import LLM, SamplingParams
from backend.command_line import CONTEXT_SETTINGS, run
from benchmarks.checkpoint import hugging_face_parts
from benchmarks.record import RESULTS, save

PROMPTS = [f"Tell me a story about a {animal} and a {other}." for animal in ("fox", "cat", "bear", "owl")
           for other in ("rabbit", "mouse", "hedgehog", "squirrel")]


@click.command(context_settings=CONTEXT_SETTINGS, epilog="Example: python -m benchmarks.cpu --rounds 5")
@click.option("--model", default="demo/checkpoint", show_default=True, help="A LLaMA-shaped Hugging Face folder.")
@click.option("--new_tokens", default=128, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Median of so many, engines in turn.")
@click.option("--json", "file", type=click.Path(path_type=Path), default=RESULTS / "cpu.json", show_default=True)
def main(model: str, new_tokens: int, rounds: int, file: Path) -> None:
    """Tokens per second at batch 1 and 16, ours and transformers'."""
    llm = LLM(model, "internlm2", device="cpu", dtype="float32", max_batch_size=16, session_len=1024,
              enable_prefix_caching=False)
    prompts = [llm.front_end.chat_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    reference = transformers_model(llm)
    engines = {"millrace": lambda batch: ours(llm, batch, new_tokens),
               "transformers": lambda batch: theirs(reference, batch, new_tokens)}
    seconds: dict[tuple[str, int], list[float]] = {}
    for batch_size in (1, 16):
        batch = [prompts[0]] * batch_size if batch_size == 1 else prompts  # equal lengths are not needed by either
        answers = {name: engine(batch) for name, engine in engines.items()}  # also the warm-up
        if batch_size == 1 and answers["millrace"] != answers["transformers"]:
            raise click.ClickException("the engines disagree on the greedy tokens, so their times mean nothing")
        for _ in range(rounds):
            for name, engine in engines.items():
                begin = time.perf_counter()
                engine(batch)
                seconds.setdefault((name, batch_size), []).append(time.perf_counter() - begin)
    rate = {key: key[1] * new_tokens / statistics.median(times) for key, times in seconds.items()}
    click.echo(f"{'tokens/s':14}{'batch 1':>10}{'batch 16':>10}")
    for name in engines:
        click.echo(f"{name:14}{rate[name, 1]:>10,.0f}{rate[name, 16]:>10,.0f}")
    click.echo(f"batch 1 against transformers: {rate['millrace', 1] / rate['transformers', 1]:.2f}x;  "
               f"batch 16 against batch 1: {rate['millrace', 16] / rate['millrace', 1]:.2f}x")
    save(file, {"new_tokens": new_tokens, "rounds": rounds, "tokens_per_s": {
        name: {str(size): round(rate[name, size], 1) for size in (1, 16)} for name in engines}})


def ours(llm: LLM, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Greedy tokens by the engine."""
    sampling = SamplingParams(temperature=0, max_new_tokens=new_tokens, ignore_eos=True)
    return [list(answer.token_ids) for answer in llm.generate(prompts, sampling, show_progress=False)]


@torch.inference_mode()
def theirs(model: torch.nn.Module, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Greedy tokens by transformers.generate, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                            do_sample=False, pad_token_id=0)
    return output[:, longest:].tolist()


def transformers_model(llm: LLM) -> torch.nn.Module:
    """transformers' LLaMA with the weights that the engine has loaded."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise click.ClickException("this compares with transformers: pip install -e '.[bench]'") from None
    config = llm.front_end.model
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, head_dim=config.head_dim,
        num_key_value_heads=config.num_kv_heads, rms_norm_eps=config.norm_eps, rope_theta=config.rope.theta,
        max_position_embeddings=config.max_position_embeddings, eos_token_id=None)).eval()
    state = {place: part for name, tensor in llm.source.tensors()
             for place, part in hugging_face_parts(config, name, tensor[:].float()).items()}
    model.load_state_dict(state)
    return model


if __name__ == "__main__":
    run(main)
