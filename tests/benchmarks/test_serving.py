"""benchmarks.serving: the load is what it says, and what a server does is what is counted."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics

import click
import pytest
from click.testing import CliRunner

from benchmarks import serving_figures, serving_load, serving_plot
from benchmarks.openai_stream import Outcome
from benchmarks.plot import drawn_points
from benchmarks.serving import main
from benchmarks.serving_load import TokensPerWord
from tests.client.fake_openai import FakeOpenAi


@pytest.fixture
def server():
    server = FakeOpenAi(api_key="secret").start()
    yield server
    server.close()


def run(server, folder, *arguments):
    """The command's result, and what it kept."""
    file = folder / "serving.json"
    result = CliRunner().invoke(main, [server.url, "--api_key", "secret", "--json", str(file), *arguments])
    return result, json.loads(file.read_text()) if file.is_file() else None


def test_every_answer_of_a_run_is_counted_with_the_tokens_that_the_server_counted(server, tmp_path):
    result, kept = run(server, tmp_path, "--rates", "inf,200", "--num_requests", "20", "--lengths", "40:7")
    assert result.exit_code == 0, result.output
    assert (kept["model"], kept["server"]) == ("internlm", "Millrace")
    assert [figure["rate"] for figure in kept["runs"]] == ["inf", "200.0"]
    for figure in kept["runs"]:
        assert (figure["num_requests"], figure["num_failed"]) == (20, 0)
        assert (figure["num_prompt_tokens"], figure["num_new_tokens"]) == (20 * 40, 20 * 7)
        assert figure["tokens_per_part"] == 1
        assert 0 < figure["ttft_ms"]["p50"] <= figure["ttft_ms"]["p99"] <= figure["ttft_ms"]["max"]
        assert figure["itl_ms"].keys() == figure["ttft_ms"].keys()
        assert figure["server_cpu_us_per_token"] is None
    assert kept["runs"][0]["most_at_once"] == 20
    asked = server.requests[-1]
    assert (asked["stream"], asked["max_tokens"], asked["ignore_eos"]) == (True, 7, True)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_either_endpoint_can_be_loaded(server, tmp_path, endpoint):
    _, kept = run(server, tmp_path, "--rates", "inf", "--num_requests", "3", "--lengths", "20:5", "--endpoint",
                  endpoint, "--extra", '{"temperature": null, "top_k": 3}', "--natural_ends")
    assert kept["runs"][0]["num_new_tokens"] == 3 * 5
    asked = server.requests[-1]
    assert asked["top_k"] == 3 and not {"temperature", "ignore_eos"} & asked.keys()


def test_the_picture_shows_what_the_json_says(server, tmp_path):
    pytest.importorskip("matplotlib")
    _, kept = run(server, tmp_path, "--rates", "inf", "--num_requests", "4", "--lengths", "20:5")
    assert drawn_points((tmp_path / "serving.svg").read_text()) == {"Millrace": serving_plot.points(kept)}
    assert len(serving_plot.points(kept)["ttft_ms p99"]) == 1


def test_pictures_of_several_servers_are_drawn_from_their_json(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [{"output_tokens_per_s": 10.0, **{name: {"p50": 1.0, "p99": 2.0} for name in ("ttft_ms", "itl_ms")}}]
    for name in ("Millrace", "another"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"server": name, "runs": runs}))
    result = CliRunner().invoke(serving_plot.main, [str(tmp_path / "Millrace.json"), str(tmp_path / "another.json"),
                                                    "--file", str(tmp_path / "both.svg")])
    assert result.exit_code == 0, result.output
    assert drawn_points((tmp_path / "both.svg").read_text()).keys() == {"Millrace", "another"}


@pytest.mark.parametrize(("question", "said"), [
    ("busy", "the queue is full"), ("fail", "rank 0 was killed"), ("die", "Error")])
def test_what_is_lost_is_told_and_counts_for_nothing(server, tmp_path, question, said):
    dataset = tmp_path / "asks.jsonl"
    dataset.write_text(json.dumps({"prompt": question, "num_new_tokens": 5}) + "\n")
    _, kept = run(server, tmp_path, "--rates", "inf", "--num_requests", "2", "--dataset", str(dataset))
    figure = kept["runs"][0]
    assert (figure["num_failed"], figure["num_new_tokens"], figure["ttft_ms"]) == (2, 0, {})
    assert all(said in error for error in figure["errors"]) and sum(figure["errors"].values()) == 2


def test_equal_seeds_give_equal_loads_and_others_do_not(server, tmp_path):
    loads = []
    for seed in ("1", "1", "2"):
        server.requests.clear()
        run(server, tmp_path, "--rates", "inf", "--num_requests", "5", "--seed", seed)
        loads.append(sorted((asked["messages"][0]["content"], asked["max_tokens"])
                            for asked in server.requests if asked.get("stream")))
    assert loads[0] == loads[1] != loads[2] and len(loads[0]) == 5


@pytest.mark.parametrize(("arguments", "message"), [
    (["--rates", "fast"], "is no list of requests per second"),
    (["--rates", "0"], "not above 0"),
    (["--rates", "inf"], "needs --num_requests"),
    (["--lengths", "long"], "--lengths long is not known"),
    (["--extra", "[]"], "is no JSON object"),
    (["--server_pid", "999999999"], "is no process of this machine"),
    (["--api_key", "wrong"], "does not name a model"),
])
def test_wrong_input_is_one_line(server, tmp_path, arguments, message):
    result, kept = run(server, tmp_path, *arguments)
    assert result.exit_code != 0 and kept is None and message in result.output and "Traceback" not in result.output


def test_arrivals_come_at_the_rate_that_is_asked_for():
    times = serving_load.arrival_times(random.Random(0), 8.0, 4000)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # Of a Poisson process the gaps' mean and standard deviation are both 1 / rate; 4,000 of them tell to 5 %.
    assert statistics.fmean(gaps) == pytest.approx(1 / 8, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 8, rel=0.05)
    assert serving_load.arrival_times(random.Random(0), math.inf, 3) == [0, 0, 0]


def test_lengths_are_like_sharegpts():
    asks = list(itertools.islice(serving_load.sharegpt_like(random.Random(0)), 4000))
    assert all(4 <= ask.num_prompt_tokens <= 1024 and ask.num_prompt_tokens + ask.num_new_tokens <= 2048
               for ask in asks)
    # Cutting the tails takes something from the means.
    assert 120 < statistics.fmean(ask.num_prompt_tokens for ask in asks) < 161
    assert 290 < statistics.fmean(ask.num_new_tokens for ask in asks) < 338


def test_a_file_of_sharegpt_gives_its_first_questions_and_the_lengths_of_their_answers(tmp_path):
    file = tmp_path / "sharegpt.json"
    talk = [{"from": "human", "value": "one two three"}, {"from": "gpt", "value": "four five"}]
    file.write_text(json.dumps([{"conversations": talk}, {"conversations": talk[1:]}, {"conversations": []}]))
    asks = serving_load.from_file(file, random.Random(0), TokensPerWord(2.0, 9.0))
    assert next(asks) == next(asks) == serving_load.Ask(6, 4, "one two three")


def test_a_file_of_another_kind_is_one_line(tmp_path):
    file = tmp_path / "asks.jsonl"
    file.write_text('{"question": "?"}\n')
    with pytest.raises(click.ClickException, match="is neither ShareGPT's JSON nor lines of"):
        next(serving_load.from_file(file, random.Random(0), TokensPerWord(1.0, 0.0)))


def test_a_prompt_has_as_many_tokens_as_it_should():
    tokens_per_word = TokensPerWord.of((64, 64 * 2 + 9), (256, 256 * 2 + 9))
    assert (tokens_per_word.slope, tokens_per_word.offset) == (2, 9)
    assert tokens_per_word.num_words(109) == 50 and tokens_per_word.num_words(1) == 1


def test_waiting_is_counted_from_when_a_request_was_due():
    late = Outcome(due_s=1.0, sent_s=3.0, first_s=4.0, last_s=4.5, ended_s=5.0, gaps_s=[0.5], num_new_tokens=4,
                   error=None)
    figure = serving_figures.figures(1.0, [late], cpu_s=0.5, server_cpu_s=0.002)
    assert figure["server_cpu_us_per_token"] == 500
    assert (figure["ttft_ms"]["p50"], figure["sent_late_ms"]["max"], figure["itl_ms"]["p99"]) == (3000, 2000, 500)
    assert (figure["output_tokens_per_s"], figure["tokens_per_part"], figure["client_cpu_share"]) == (0.8, 2, 0.1)


def test_percentiles_are_values_that_were_measured():
    assert serving_figures.spread(range(1, 101)) == {"mean": 50.5, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert serving_figures.spread([7.0])["p99"] == 7
