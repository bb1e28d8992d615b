"""Streaming: what the servers of port 33337 add to a token. A stub model emits at will; only the server works.

    python -m benchmarks.streaming                   # the embedded server, and the real one where it is installed
    python -m benchmarks.streaming --target embedded --rounds 5

Responses per second and CPU time of the server's processes per response, on 1 stream and on 64 at once, with one client
process. Rounds alternate between the targets; the table shows medians. Results: results/streaming.json."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click

from benchmarks.record import RESULTS, save

try:
    import grpc
    import psutil
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from backend.serving.kserve_grpc import GrpcServer
    from backend.serving.model_repository import ModelRepository
    from tests.backend.serving.embedded_harness import write_configs
    from tests.backend.serving.stub_models import CONFIGS, models
    from tests.backend.serving.triton_harness import VENV, start_triton, write_repository
except ModuleNotFoundError as error:  # --help needs none of these
    missing = error.name
else:
    missing = None

CASES = ((1, 20_000), (64, 400))  # streams, responses of each


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "),  # the commands stay a line each
               context_settings={"show_default": True})
@click.option("--target", "targets", multiple=True, type=click.Choice(["embedded", "triton"]), help="repeatable")
@click.option("--rounds", default=3, type=click.IntRange(1))
@click.option("--serve", type=click.Path(path_type=Path), hidden=True)
def main(targets: tuple[str, ...], rounds: int, serve: Path | None) -> None:
    if missing is not None:
        raise click.ClickException(f"the stub model and its servers are the tests', which need {missing}: "
                                   "pip install -e '.[dev,serve]'")
    if serve is not None:
        asyncio.run(_serve(serve))
        return
    targets = targets or (("embedded", "triton") if (VENV / ".installed").is_file() else ("embedded",))
    figures: dict[str, list[dict[str, float]]] = {}
    load_before = os.getloadavg()[0]
    for number in range(rounds):
        for target in targets:
            for streams, responses in CASES:
                with {"embedded": _embedded, "triton": _triton}[target]() as (pid, port):
                    figure = asyncio.run(_measure(psutil.Process(pid), port, streams, responses))
                figures.setdefault(f"{target}, {streams} streams x {responses}", []).append(figure)
                click.echo(f"round {number + 1}: {target:9} {streams:3} streams  "
                           f"{figure['responses_per_s']:8.0f} responses/s  {figure['server_cpu_us']:6.1f} us")
    medians = {case: {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}
               for case, runs in figures.items()}
    for case, median in medians.items():
        click.echo(f"{case:32} {median['responses_per_s']:8.0f} responses/s  {median['server_cpu_us']:6.1f} us")
    save(RESULTS / "streaming.json", {
        "model": "tests.backend.serving.stub_models.Decoupled", "packages": {"grpcio": version("grpcio")},
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)], "rounds": figures, "medians": medians})


async def _measure(server: psutil.Process, port: int, streams: int, responses: int) -> dict[str, float]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await _read(stub, 100)  # connection and code are warm
        cpu_s, began = _cpu_s(server), time.perf_counter()
        counts = await asyncio.gather(*(_read(stub, responses) for _ in range(streams)))
        wall_s, cpu_s = time.perf_counter() - began, _cpu_s(server) - cpu_s
    assert counts == [responses] * streams, counts
    return {"responses_per_s": streams * responses / wall_s, "server_cpu_us": cpu_s / (streams * responses) * 1e6}


async def _read(stub: service_pb2_grpc.GRPCInferenceServiceStub, responses: int) -> int:
    """Responses with outputs that one stream brought."""
    request = service_pb2.ModelInferRequest(model_name="decoupled")
    request.inputs.add(name="PROMPT", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"x")
    request.inputs.add(name="MAX_TOKENS", datatype="INT32", shape=[1]).contents.int_contents.append(responses)
    count = 0
    async for response in stub.ModelStreamInfer(iter([request])):
        assert not response.error_message, response.error_message
        count += bool(response.infer_response.outputs)
    return count


def _cpu_s(server: psutil.Process) -> float:
    """Of the server and the processes of its models."""
    return sum(times.user + times.system for times in
               (process.cpu_times() for process in [server, *server.children(recursive=True)]))


@contextlib.contextmanager
def _embedded() -> Iterator[tuple[int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        write_configs(Path(folder), CONFIGS)
        command = [sys.executable, "-m", "benchmarks.streaming", "--serve", folder]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def _triton() -> Iterator[tuple[int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder) / "models", CONFIGS, "tests.backend.serving.stub_models", "models")
        with start_triton(Path(folder) / "models") as server:
            yield server.process.pid, server.grpc_port


async def _serve(folder: Path) -> None:
    server = GrpcServer(ModelRepository(models(), folder))
    print(await server.start("127.0.0.1", 0), flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    main()
