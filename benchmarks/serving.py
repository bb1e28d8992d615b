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
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import click

from benchmarks import serving_figures, serving_load, serving_plot
from benchmarks.openai_stream import Api, Outcome, ask, count_tokens, models
from benchmarks.record import save
from benchmarks.serving_load import WORDS, Ask, TokensPerWord
from terminal.command_line import CONTEXT_SETTINGS

if TYPE_CHECKING:
    import psutil


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


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "),  # the commands stay a line each
               context_settings={**CONTEXT_SETTINGS, "show_default": True})
@click.argument("url")
@click.option("--rates", default="1,2,4,8", type=Rates(), help="Requests per second, one run each; inf is all at once.")
@click.option("--duration_s", default=30.0, type=click.FloatRange(0, min_open=True),
              help="Requests arrive for so long at each rate.")
@click.option("--num_requests", type=click.IntRange(1), help="So many at each rate instead; with inf it is needed.")
@click.option("--lengths", default="sharegpt", help="sharegpt, or PROMPT:NEW in tokens, as 512:128.")
@click.option("--dataset", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="ShareGPT's JSON, or lines of num_new_tokens with prompt or num_prompt_tokens.")
@click.option("--endpoint", default="chat", type=click.Choice(["chat", "completions"]))
@click.option("--model", help="The first of /v1/models if not given.")
@click.option("--api_key", envvar="OPENAI_API_KEY", help="Also from OPENAI_API_KEY.")
@click.option("--limit_field", default="max_tokens", type=click.Choice(["max_tokens", "max_completion_tokens"]))
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
         dataset: Path | None, endpoint: str, model: str | None, api_key: str | None, limit_field: str,
         natural_ends: bool, extra: str, timeout_s: float, seed: int, server_pid: int | None, server: str, file: Path,
         plot: Path | None) -> None:
    if num_requests is None and any(map(math.isinf, rates)):
        raise click.ClickException("a rate of inf needs --num_requests")
    url = url.rstrip("/").removesuffix("/v1")
    front_end = None if server_pid is None else _process(server_pid)
    api = Api(url, model or _first_model(url, api_key), endpoint, api_key, limit_field,
              ({} if natural_ends else {"ignore_eos": True}) | _extra(extra))
    work = Work(rates, duration_s, num_requests, lengths, dataset, seed)
    figures: list[dict[str, Any]] = []

    def keep(figure: dict[str, Any]) -> None:  # after each rate, so that a run that is cut short is not lost
        figures.append(figure)
        save(file, {"server": server, "model": api.model, "endpoint": endpoint, "lengths": str(dataset or lengths),
                    "seed": seed, "natural_ends": natural_ends, "runs": figures,
                    "load_average": [load_before, round(os.getloadavg()[0], 1)]})

    load_before = round(os.getloadavg()[0], 1)
    _allow_many_connections()
    asyncio.run(_measure(api, work, timeout_s, front_end, keep))
    click.echo(f"wrote {file}")
    if find_spec("matplotlib") is None:
        click.echo(f"no picture without matplotlib; where it is: python -m benchmarks.serving_plot {file}")
        return
    plot = plot or file.with_suffix(".svg")
    serving_plot.draw([json.loads(file.read_text(encoding="utf-8"))], plot)
    click.echo(f"wrote {plot}")


@dataclass(frozen=True, slots=True)
class Work:
    """What is sent: see the options of the same names."""

    rates: tuple[float, ...]
    duration_s: float
    num_requests: int | None
    lengths: str
    dataset: Path | None
    seed: int

    def asks(self, rng: random.Random, tokens_per_word: TokensPerWord) -> Iterator[Ask]:
        """Endless requests. Raises ClickException for lengths that are not known."""
        if self.dataset is not None:
            return serving_load.from_file(self.dataset, rng, tokens_per_word)
        if self.lengths == "sharegpt":
            return serving_load.sharegpt_like(rng)
        num_prompt, _, num_new = self.lengths.partition(":")
        if not (num_prompt.isdecimal() and num_new.isdecimal() and int(num_prompt) and int(num_new)):
            raise click.ClickException(f"--lengths {self.lengths} is not known; use sharegpt, or PROMPT:NEW as 512:128")
        return serving_load.fixed(int(num_prompt), int(num_new))


async def _measure(api: Api, work: Work, timeout_s: float, front_end: psutil.Process | None,
                   keep: Callable[[dict[str, Any]], None]) -> None:
    """One run per rate; `keep` gets the figures of each when it is over."""
    async with api.http(timeout_s) as http:
        try:
            tokens_per_word = await _probe(api, http)
        except (RuntimeError, OSError, KeyError, aiohttp.ClientError) as error:
            raise click.ClickException(f"{api.url} does not answer a request: {error}") from None
        click.echo(serving_figures.header())
        for number, rate in enumerate(work.rates):
            # A generator of its own for each run, so that a run does not depend on those before it.
            rng = random.Random(f"{work.seed} {number} {rate}")
            count = work.num_requests or max(1, round(rate * work.duration_s))
            asks = list(itertools.islice(work.asks(rng, tokens_per_word), count))
            prompts = [serving_load.prompt_text(ask_, rng, tokens_per_word) for ask_ in asks]
            due_s = serving_load.arrival_times(rng, rate, count)
            figure = await _run(api, http, rate, due_s, prompts, asks, front_end)
            click.echo(serving_figures.row(figure))
            for error, times in figure["errors"].items():
                click.echo(f"    {times} x {error}", err=True)
            keep(figure)


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


def _process(pid: int) -> psutil.Process:
    try:
        import psutil
    except ModuleNotFoundError:
        raise click.ClickException("--server_pid needs psutil: pip install -e '.[bench]'") from None
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        raise click.ClickException(f"--server_pid {pid} is no process of this machine") from None


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


def _allow_many_connections() -> None:
    """A shell's usual limit of 1,024 open files would lose requests."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
