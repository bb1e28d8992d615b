from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.requests import SamplingParams
from backend.steps import RowSetup
from backend.worker.sampler import SampledTokens, sample
from backend.worker.sampling_state import SamplingState
from backend.worker.upload import upload

VOCAB = 40
NUM_DRAWS = 4000
# Five standard deviations of a share estimated from NUM_DRAWS draws.
SHARE_TOLERANCE = 5 * math.sqrt(0.25 / NUM_DRAWS)
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2


def run(logits: Tensor, requests: Sequence[SamplingParams], history: Sequence[Sequence[int]] | None = None,
        num_prompt: Sequence[int] | None = None, seeds: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        allowed: Sequence[Sequence[int]] = ()) -> tuple[SampledTokens, Tensor]:
    """Samples logits [R, V] for R rows in reverse table order; the sampled tokens and the token table.

    allowed  for each row with a grammar, the tokens that may come"""
    count = len(requests)
    history = history or [[5]] * count
    table = torch.full((count, 64), 7, dtype=torch.int32)
    state = SamplingState(count, logits.shape[1])
    rows = np.arange(count)[::-1].copy()
    for index, request in enumerate(requests):
        row = int(rows[index])
        tokens = tuple(history[index])
        table[row, : len(tokens)] = torch.tensor(tokens)
        state.set_row(RowSetup(row, tokens, len(tokens) if num_prompt is None else num_prompt[index], (), request,
                               (2, 3), seeds[index] if seeds else index))
    places = np.array(positions if positions is not None else [len(tokens) for tokens in history])
    batch = upload(state.batch(rows, places, rows * 64 + np.minimum(places, 63)), torch.device("cpu"))
    return sample(logits, batch, table, token_bits(allowed, logits.shape[1]) if allowed else None), table


def token_bits(allowed: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """A mask [C, words] int32 that allows each of C rows its tokens."""
    bits = np.zeros((len(allowed), 32 * -(-vocab_size // 32)), np.uint8)
    for line, token_ids in zip(bits, allowed, strict=True):
        line[list(token_ids)] = 1
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32))


def shares(request: SamplingParams, logits: Tensor = LOGITS) -> Tensor:
    """Share of each token over NUM_DRAWS draws of one request's positions."""
    sampled, _ = run(logits.expand(NUM_DRAWS, -1), [request] * NUM_DRAWS, seeds=[11] * NUM_DRAWS,
                     positions=list(range(1, NUM_DRAWS + 1)))
    return torch.bincount(sampled.token_ids, minlength=logits.shape[0]) / NUM_DRAWS


def naive_distribution(logits: Tensor, request: SamplingParams) -> Tensor:
    """Temperature, top_k, top_p and min_p one after the other, each renormalising, over sorted tokens."""
    probabilities = (logits.double() / request.temperature).softmax(-1)
    order = probabilities.argsort(descending=True).tolist()
    kept = order[: request.top_k or None]
    mass = sum(probabilities[token].item() for token in kept)
    nucleus, cumulated = [], 0.0
    for token in kept:
        if cumulated >= request.top_p:
            break
        nucleus.append(token)
        cumulated += probabilities[token].item() / mass
    nucleus = [token for token in nucleus if probabilities[token] >= request.min_p * probabilities[order[0]]]
    result = torch.zeros(logits.shape[0], dtype=torch.float64)
    result[nucleus] = probabilities[nucleus]
    return result / result.sum()


def sampling(**options: object) -> SamplingParams:
    return SamplingParams(**({"temperature": 1.0, "top_p": 1.0} | options))


def greedy(**options: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, **options)


@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 3}, {"top_k": 1}, {"top_k": 1000}, {"top_p": 0.7},
    {"top_p": 1e-6}, {"min_p": 0.2}, {"min_p": 1.0}, {"top_k": 8, "top_p": 0.6, "min_p": 0.1, "temperature": 1.7},
], ids=str)
def test_draws_follow_the_distribution_of_the_naive_filters(options: dict) -> None:
    request = sampling(**options)
    expected = naive_distribution(LOGITS, request)
    found = shares(request)
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < SHARE_TOLERANCE


def test_greedy_takes_the_likeliest_token() -> None:
    logits = torch.stack((LOGITS, -LOGITS))
    sampled, table = run(logits, [greedy(), greedy()])
    assert sampled.token_ids.tolist() == logits.argmax(-1).tolist()
    assert table[[1, 0], 1].tolist() == sampled.token_ids.tolist()


def test_sampled_ids_go_to_the_next_place_of_their_rows() -> None:
    sampled, table = run(torch.stack((LOGITS, -LOGITS)), [sampling(), greedy()], history=[[1, 2, 3], [4]])
    assert table[1, :5].tolist() == [1, 2, 3, sampled.token_ids[0], 7]
    assert table[0, :3].tolist() == [4, sampled.token_ids[1], 7]


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch() -> None:
    request = sampling(temperature=2.0)
    others = [greedy(), sampling(top_k=2, seed=0), sampling(top_p=0.3), greedy(presence_penalty=2.0)]
    alone, _ = run(LOGITS[None], [request], seeds=[99], positions=[17])
    logits = torch.stack((-LOGITS, LOGITS * 2, LOGITS, -LOGITS, LOGITS))
    together, _ = run(logits, [*others[:2], request, *others[2:]], seeds=[1, 2, 99, 3, 4], positions=[1, 2, 17, 4, 5])
    assert together.token_ids[2] == alone.token_ids[0]


def test_seeds_and_positions_give_different_draws() -> None:
    request = sampling(temperature=50.0)
    same = run(LOGITS.expand(30, -1), [request] * 30, seeds=[1] * 30, positions=[9] * 30)[0].token_ids
    by_seed = run(LOGITS.expand(30, -1), [request] * 30, positions=[9] * 30)[0].token_ids
    by_position = run(LOGITS.expand(30, -1), [request] * 30, seeds=[1] * 30, positions=list(range(30)))[0].token_ids
    assert len(set(same.tolist())) == 1
    assert len(set(by_seed.tolist())) > 10 and len(set(by_position.tolist())) > 10


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e-4])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    assert shares(sampling(temperature=temperature, top_p=0.9))[LOGITS.argmax()] == 1.0


def test_extreme_logits_give_a_valid_token_at_any_temperature() -> None:
    logits = torch.full((1, VOCAB), -1e30)
    logits[0, 6] = 1e30
    for temperature in (1e-5, 1.0, 100.0):
        assert run(logits, [sampling(temperature=temperature, top_p=0.5)])[0].token_ids.tolist() == [6]


def test_equal_logits_are_kept_or_cut_together() -> None:
    logits = torch.zeros(VOCAB)
    logits[:3] = 1.0
    assert (shares(sampling(top_k=2), logits)[:3] > 0.25).all()


def test_repetition_penalty_shrinks_positive_and_lowers_negative_logits_of_known_tokens() -> None:
    logits = torch.full((1, VOCAB), -9.0)
    logits[0, 10], logits[0, 11], logits[0, 12] = 4.0, 3.0, 2.9
    request = greedy(repetition_penalty=2.0)
    assert run(logits, [request], history=[[10, 11]])[0].token_ids.tolist() == [12]
    assert run(logits, [request], history=[[1]])[0].token_ids.tolist() == [10]
    negative = -torch.ones(1, VOCAB)
    negative[0, 10] = -0.6
    assert run(negative, [request], history=[[10]])[0].token_ids.tolist() == [0]


def test_presence_and_frequency_penalties_count_the_completion_only() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 10], logits[0, 11] = 1.5, 1.0
    history = [[10, 10, 10, 11, 10, 10]]
    for penalty, num_prompt, expected in (
            (greedy(presence_penalty=1.0), 6, 10), (greedy(presence_penalty=1.0), 4, 11),
            (greedy(frequency_penalty=0.2), 5, 10), (greedy(frequency_penalty=0.3), 4, 11),
            (greedy(frequency_penalty=-0.3), 3, 10)):
        assert run(logits, [penalty], history, [num_prompt])[0].token_ids.tolist() == [expected], penalty


def test_penalties_ignore_what_an_earlier_sequence_left_in_the_row() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 1.0  # the table is full of 7 behind the history
    assert run(logits, [greedy(repetition_penalty=5.0, presence_penalty=2.0)])[0].token_ids.tolist() == [7]


def test_logit_bias_is_added_to_its_tokens() -> None:
    best = int(LOGITS.argmax())
    assert run(LOGITS[None], [greedy(logit_bias=((9, 100.0), (10, 50.0)))])[0].token_ids.tolist() == [9]
    assert run(LOGITS[None], [greedy(logit_bias=((best, -100.0),))])[0].token_ids.tolist() != [best]


def test_a_bad_word_is_forbidden_exactly_where_it_would_be_completed() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 20], logits[0, 21] = 2.0, 1.0
    request = greedy(bad_words=((4, 5, 20), (39,)))
    assert run(logits, [request], history=[[1, 4, 5]])[0].token_ids.tolist() == [21]
    assert run(logits, [request], history=[[4, 5, 1]])[0].token_ids.tolist() == [20]
    assert run(logits, [request], history=[[5]])[0].token_ids.tolist() == [20]
    assert run(logits, [greedy(bad_words=((20,),))], history=[[1]])[0].token_ids.tolist() == [21]


def test_end_ids_are_masked_before_min_new_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 2], logits[0, 3], logits[0, 8] = 3.0, 2.0, 1.0
    request = greedy(min_new_tokens=2)
    for history, expected in (([1, 1], 8), ([1, 1, 9], 8), ([1, 1, 9, 9], 2)):
        assert run(logits, [request], [history], [2])[0].token_ids.tolist() == [expected]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_in_which_everything_is_forbidden_takes_the_raw_argmax(temperature: float) -> None:
    everything = tuple((token,) for token in range(VOCAB))
    request = SamplingParams(temperature=temperature, bad_words=everything)
    assert run(LOGITS[None], [request])[0].token_ids.tolist() == [int(LOGITS.argmax())]


def test_ids_outside_the_vocabulary_are_ignored() -> None:
    request = greedy(bad_words=((VOCAB,), (-1,)), logit_bias=((VOCAB + 9, 5.0),))
    assert run(LOGITS[None], [request])[0].token_ids.tolist() == [int(LOGITS.argmax())]


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    logits = torch.stack((LOGITS, LOGITS * 0.5, -LOGITS))
    requests = [sampling(temperature=0.3, logprobs=2, top_k=5), greedy(),
                greedy(logprobs=4, repetition_penalty=3.0, bad_words=((int((-LOGITS).argmax()),),))]
    sampled, _ = run(logits, requests)
    expected = logits[[0, 2]].log_softmax(-1)
    chosen = sampled.token_ids[[0, 2]]
    torch.testing.assert_close(sampled.logprobs, expected[[0, 1], chosen])
    torch.testing.assert_close(sampled.top_logprobs, expected.topk(4).values)
    assert sampled.top_token_ids.tolist() == expected.topk(4).indices.tolist()


def test_the_logits_are_left_as_they_were() -> None:
    logits = LOGITS[None].clone()
    run(logits, [sampling(repetition_penalty=2.0, presence_penalty=1.0, logit_bias=((1, 5.0),), top_p=0.5)])
    assert torch.equal(logits, LOGITS[None])


def test_a_step_pays_only_for_features_that_its_rows_use() -> None:
    state = SamplingState(3, VOCAB)
    plain = RowSetup(0, (1,), 1, (), greedy(), (2,), 0)
    rich = RowSetup(1, (1,), 1, (), sampling(top_k=4, min_p=0.1, presence_penalty=1.0, logprobs=1, min_new_tokens=1),
                    (2,), 0)
    state.set_row(plain)
    state.set_row(rich)
    batch = state.batch(np.array([0]), np.array([1]), np.array([1]))
    assert batch.draw is batch.penalties is batch.changes is batch.logprobs_index is None
    assert batch.is_plain
    batch = state.batch(np.array([0, 1]), np.array([1, 1]), np.array([1, 9]))
    assert not batch.is_plain
    assert batch.draw.temperature.tolist() == [0.0, 1.0] and batch.draw.top_k.tolist() == [VOCAB, 4]
    assert batch.penalties.index.tolist() == batch.logprobs_index.tolist() == [1]


def test_draws_stay_within_the_kept_tokens_over_a_large_vocabulary() -> None:
    logits = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(5)).expand(200, -1)
    sampled, _ = run(logits, [sampling(top_k=10)] * 200)
    assert set(Counter(sampled.token_ids.tolist())) <= set(logits[0].topk(10).indices.tolist())


GRAMMAR = {"grammar": "start: /x/"}


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 2.0}, {"temperature": 3.0, "top_k": 2},
                                     {"temperature": 1.0, "repetition_penalty": 1.5, "logit_bias": ((1, 50.0),)}])
def test_rows_with_a_grammar_take_allowed_tokens_and_the_others_any(options: dict) -> None:
    request, free = sampling(**options, **GRAMMAR), greedy()
    logits = torch.stack((LOGITS, LOGITS * 2, -LOGITS))
    for seed in range(20):
        sampled, table = run(logits, [request, free, request], seeds=[seed] * 3, allowed=[(4, 30), (39,)])
        assert sampled.token_ids[0] in (4, 30) and sampled.token_ids[2] == 39
        assert sampled.token_ids[1] == LOGITS.argmax()
        assert table[[2, 1, 0], 1].tolist() == sampled.token_ids.tolist()


def test_a_grammar_leaves_the_shares_of_what_it_allows() -> None:
    allowed = [3, 8, 21, 33]
    found, _ = run(LOGITS.expand(NUM_DRAWS, -1), [sampling(**GRAMMAR)] * NUM_DRAWS, seeds=[11] * NUM_DRAWS,
                   positions=list(range(1, NUM_DRAWS + 1)), allowed=[allowed] * NUM_DRAWS)
    expected = torch.zeros(VOCAB)
    expected[allowed] = LOGITS[allowed].softmax(-1)
    assert (torch.bincount(found.token_ids, minlength=VOCAB) / NUM_DRAWS - expected).abs().max() < SHARE_TOLERANCE


def test_logprobs_of_a_row_with_a_grammar_are_raw() -> None:
    sampled, _ = run(LOGITS[None], [greedy(logprobs=2, **GRAMMAR)], allowed=[(6,)])
    torch.testing.assert_close(sampled.logprobs, LOGITS.log_softmax(-1)[[6]])
    torch.testing.assert_close(sampled.top_logprobs[0], LOGITS.log_softmax(-1).topk(2).values)


def test_where_all_that_a_grammar_allows_is_forbidden_the_grammar_wins() -> None:
    request = greedy(bad_words=((4,), (5,)), **GRAMMAR)
    likelier = 4 if LOGITS[4] > LOGITS[5] else 5
    assert run(LOGITS[None], [request], allowed=[(4, 5)])[0].token_ids.tolist() == [likelier]
