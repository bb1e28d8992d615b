"""Serving: how many tokens a second any server of OpenAI's API gives under a load, and how long its users wait.

    python -m benchmarks.serving http://127.0.0.1:23333 --rates 1,2,4,8
    python -m benchmarks.serving http://127.0.0.1:8000 --server "vLLM 0.22.1" --rates 1,2,4,8 --json vllm.json
    python -m benchmarks.serving http://127.0.0.1:23333 --rates inf --num_requests 200

An open loop: requests arrive by a Poisson process whether earlier ones are answered or not, one run per rate. Lengths
are like ShareGPT's, of one size, or a file's; equal seeds give equal loads, so peers meet the same. Prompts are random
words: the server itself is asked how many tokens these have, so no tokenizer is needed. Times are in ms: TTFT from
when a request was due to the first text, ITL between two parts with text. Beside the table stand a JSON file and a
picture."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import click
import psutil

from benchmarks import serving_figures, serving_load, serving_plot
from benchmarks.openai_stream import Api, Outcome, ask, count_tokens, models
from benchmarks.record import save
from benchmarks.serving_load import WORDS, Ask, TokensPerWord


class Rates(click.ParamType):
    """Requests per second, ascending or not: 1,2,4.5,inf."""

    name = "RATES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            rates = tuple(float(rate) for rate in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of requests per second; use 1,2,4 or inf", param, ctx)
        if not all(rate > 0 for rate in rates):
            self.fail(f"{value!r} has a rate that is not above 0", param, ctx)
        return rates


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 110})
@click.argument("url")
@click.option("--rates", default="1,2,4,8", type=Rates(), help="Requests per second, one run each; inf is all at once.")
@click.option("--duration_s", default=30.0, type=click.FloatRange(0, min_open=True),
              help="Requests arrive for so long at each rate.")
@click.option("--num_requests", type=click.IntRange(1), help="So many at each rate instead; with inf it is needed.")
@click.option("--lengths", default="sharegpt", help="sharegpt, or PROMPT:NEW in tokens, as 512:128.")
@click.option("--dataset", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="ShareGPT's JSON, or lines of num_new_tokens with prompt or num_prompt_tokens.")
@click.option("--endpoint", default="chat", type=click.Choice(["chat", "completions"]))
@click.option("--model", help="Drawn from /v1/models if not given.")
@click.option("--api_key", envvar="OPENAI_API_KEY", help="Also from OPENAI_API_KEY.")
@click.option("--natural_ends", is_flag=True, help="Let the model end its answers: no ignore_eos is sent.")
@click.option("--extra", default="{}", help="JSON of fields for every request; null takes one away.")
@click.option("--timeout_s", default=600.0, help="An answer that takes longer is lost.")
@click.option("--seed", default=0)
@click.option("--server_pid", type=int, help="The server's front end, a process of this machine: its CPU time per "
                                             "token is kept too.")
@click.option("--server", default="Millrace", help="What the picture calls the server; name its version.")
@click.option("--json", "file", default="serving.json", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="[default: the JSON's name with .svg]")
def main(url: str, rates: tuple[float, ...], duration_s: float, num_requests: int | None, lengths: str,
         dataset: Path | None, endpoint: str, model: str | None, api_key: str | None, natural_ends: bool, extra: str,
         timeout_s: float, seed: int, server_pid: int | None, server: str, file: Path, plot: Path | None) -> None:
    if num_requests is None and any(map(math.isinf, rates)):
        raise click.ClickException("a rate of inf needs --num_requests")
    url = url.rstrip("/").removesuffix("/v1")
    if server_pid is not None and not psutil.pid_exists(server_pid):
        raise click.ClickException(f"--server_pid {server_pid} is no process of this machine")
    api = Api(url, model or _first_model(url, api_key), endpoint, api_key,
              ({} if natural_ends else {"ignore_eos": True}) | _extra(extra))
    front_end = psutil.Process(server_pid) if server_pid else None
    figures = asyncio.run(_measure(api, rates, duration_s, num_requests, lengths, dataset, timeout_s, seed, front_end))
    save(file, {"server": server, "model": api.model, "endpoint": endpoint, "lengths": str(dataset or lengths),
                "seed": seed, "natural_ends": natural_ends, "runs": figures})
    plot = plot or file.with_suffix(".svg")
    serving_plot.draw([json.loads(file.read_text(encoding="utf-8"))], plot)
    click.echo(f"wrote {file} and {plot}")


async def _measure(api: Api, rates: tuple[float, ...], duration_s: float, num_requests: int | None, lengths: str,
                   dataset: Path | None, timeout_s: float, seed: int,
                   front_end: psutil.Process | None) -> list[dict[str, Any]]:
    async with api.http(timeout_s) as http:
        try:
            tokens_per_word = await _probe(api, http)
        except (RuntimeError, OSError, KeyError, aiohttp.ClientError) as error:
            raise click.ClickException(f"{api.url} does not answer a request: {error}") from None
        click.echo(serving_figures.header())
        figures = []
        for number, rate in enumerate(rates):
            # A generator of its own for each run, so that a run does not depend on those before it.
            rng = random.Random(f"{seed} {number} {rate}")
            count = num_requests or max(1, round(rate * duration_s))
            asks = list(itertools.islice(_asks(lengths, dataset, rng, tokens_per_word), count))
            prompts = [serving_load.prompt_text(ask_, rng, tokens_per_word) for ask_ in asks]
            due_s = serving_load.arrival_times(rng, rate, count)
            figures.append(await _run(api, http, rate, due_s, prompts, asks, front_end))
            click.echo(serving_figures.row(figures[-1]))
            for error, times in figures[-1]["errors"].items():
                click.echo(f"    {times} x {error}", err=True)
    return figures


async def _run(api: Api, http: aiohttp.ClientSession, rate: float, due_s: list[float], prompts: list[str],
               asks: list[Ask], front_end: psutil.Process | None) -> dict[str, Any]:
    """Sends every request when it is due, and waits for all answers."""
    tasks, server_cpu_s = [], _cpu_s(front_end)
    cpu_s, start_s = time.process_time(), time.perf_counter()
    for due, prompt, size in zip(due_s, prompts, asks, strict=True):
        if (wait_s := due - (time.perf_counter() - start_s)) > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(ask(api, http, prompt, size.num_new_tokens, Outcome(due), start_s)))
    outcomes = await asyncio.gather(*tasks)
    cpu_s = time.process_time() - cpu_s
    return serving_figures.figures(rate, outcomes, cpu_s, _cpu_s(front_end) - server_cpu_s if front_end else None)


def _cpu_s(process: psutil.Process | None) -> float:
    """That a process has had so far, without its children, as an engine may be one."""
    if process is None:
        return 0.0
    times = process.cpu_times()
    return times.user + times.system


async def _probe(api: Api, http: aiohttp.ClientSession) -> TokensPerWord:
    """How many tokens our words have on average; also the server's first, slow answers."""
    once, twice = [(len(words), await count_tokens(api, http, " ".join(words))) for words in (WORDS, WORDS * 2)]
    return TokensPerWord.of(once, twice)


def _asks(lengths: str, dataset: Path | None, rng: random.Random, tokens_per_word: TokensPerWord) -> Iterator[Ask]:
    if dataset is not None:
        return serving_load.from_file(dataset, rng, tokens_per_word)
    if lengths == "sharegpt":
        return serving_load.sharegpt_like(rng)
    num_prompt, _, num_new = lengths.partition(":")
    if not (num_prompt.isdecimal() and num_new.isdecimal() and int(num_prompt) and int(num_new)):
        raise click.ClickException(f"--lengths {lengths} is not known; use sharegpt, or PROMPT:NEW as 512:128")
    return serving_load.fixed(int(num_prompt), int(num_new))


def _first_model(url: str, api_key: str | None) -> str:
    try:
        return asyncio.run(models(url, api_key))[0]["id"]
    except (OSError, aiohttp.ClientError, KeyError, IndexError) as error:
        raise click.ClickException(f"{url}/v1/models does not name a model ({error}); check the URL, or give --model"
                                   ) from None


def _extra(text: str) -> dict[str, Any]:
    try:
        extra = json.loads(text)
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise click.ClickException(f"--extra {text} is no JSON object; use one like '{{\"temperature\": 0.8}}'")
    return extra


if __name__ == "__main__":
    main()
