"""Reference of the sampling kernels in plain torch: the CPU's implementation and the oracle of the tests of
sampling.py, penalties.py and token_mask.py at once.

Reads its parameters on the host, so it runs on the CPU only. Used by worker/sampler.py, worker/noise.py (the hash's
constants), tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood, 2014): the step between successive inputs, and the factors of its mixing function.
INCREMENT, FACTOR_1, FACTOR_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
HIGHEST = torch.finfo(torch.float32).max  # what stands for a logit of +inf


def draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor,
         token_table: Tensor, slots: Tensor) -> Tensor:
    """Chooses a token per row by temperature, top_k, top_p, min_p and a draw, and writes it into the token table.

    logits       [R, V] float32   +inf is as good as the largest finite number
    temperature  [R] float32      0: the row takes the likeliest token, of equal ones the lowest, whatever else is asked
    top_k        [R] int32        in 1..V; V keeps all
    top_p        [R] float32      0 keeps the likeliest token, 1 all
    min_p        [R] float32      in 0..1; 0 keeps all
    keys         [R] int64        of each row's noise
    token_table  any shape int32  written at the flat places slots [R] int64
    Returns token ids [R] int64.

    A filter keeps or cuts equal logits together: top_k keeps what is at least the k-th largest logit; of that, top_p
    keeps the likeliest and what has less than its share of the probability above it; min_p keeps what is at least min_p
    times as likely as the likeliest. The draw is the Gumbel-max trick (Gumbel, 1954): the largest of scaled logit plus
    noise."""
    token_ids = logits.argmax(-1)
    is_drawn = temperature > 0
    if is_drawn.any():
        token_ids[is_drawn] = _draw(logits[is_drawn], temperature[is_drawn], top_k[is_drawn], top_p[is_drawn],
                                    min_p[is_drawn], keys[is_drawn])
    token_table.view(-1).index_copy_(0, slots, token_ids.int())
    return token_ids


def penalise(logits: Tensor, token_table: Tensor, counts: Tensor, index: Tensor, rows: Tensor, num_prompt: Tensor,
             length: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor) -> None:
    """Lowers, in place, the logits of tokens that P rows have seen.

    logits       [R, V] float32
    token_table  [rows, positions] int32
    counts       [P or more, V] int32  zeros, and zeros again afterwards: work space that the reference does not need
    index, rows  [P] int64             which row of the logits, and of the token table; no row of the logits twice
    num_prompt, length  [P] int32      where in the table the completion begins, and ends; length 0: nothing is lowered
    repetition   [P] float32           divides positive and multiplies negative logits of every known token
    presence     [P] float32           subtracted from those of the completion's tokens
    frequency    [P] float32           likewise, as often as the token is there"""
    longest = int(length.max())
    tokens = token_table[rows, :longest].long()
    positions = torch.arange(longest)
    is_known = positions < length[:, None]
    is_completion = is_known & (positions >= num_prompt[:, None])
    penalised = logits[index]
    zeros = torch.zeros_like(penalised)
    seen = zeros.scatter_add(1, tokens, is_known.float()) > 0
    completed = zeros.scatter_add_(1, tokens, is_completion.float())
    repeated = torch.where(penalised > 0, penalised / repetition[:, None], penalised * repetition[:, None])
    penalised = torch.where(seen, repeated, penalised)
    penalised -= presence[:, None] * (completed > 0) + frequency[:, None] * completed
    is_lowered = length > 0
    logits[index[is_lowered]] = penalised[is_lowered]


def mask_tokens(logits: Tensor, index: Tensor, bits: Tensor) -> None:
    """Sets, in place, the logits of tokens that may not come next to -inf.

    logits  [R, V] float32
    index   [C] int64                   which row of the logits
    bits    [C, ceil(V / 32)] int32     bit v % 32 of word v // 32 says whether token v may come"""
    tokens = torch.arange(logits.shape[1])
    is_allowed = (bits[:, tokens // 32] >> (tokens % 32).int()) & 1 == 1
    logits[index] = logits[index].masked_fill(~is_allowed, -torch.inf)


def gumbel_noise(keys: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise for each token of each draw: keys [R] int64 → [R, vocab_size] float32, always finite.

    A hash of key and token id, so without state. Integer arithmetic wraps alike on host, CPU and CUDA."""
    ids = torch.arange(vocab_size, dtype=torch.int64)
    mixed = keys[:, None] + ids.mul_(_signed(INCREMENT))
    mixed.bitwise_xor_(_shift_right(mixed, 30)).mul_(_signed(FACTOR_1))
    mixed.bitwise_xor_(_shift_right(mixed, 27)).mul_(_signed(FACTOR_2))
    mixed.bitwise_xor_(_shift_right(mixed, 31))
    # 53 bits as a float32 keep their relative precision near 0, which is where the winners are; 1 is cut off.
    uniform = _shift_right(mixed, 11).float().add_(1.0).mul_(2.0**-53).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
    # Less the maximum first: a tiny temperature may then send the others to -inf, but never the best one to inf.
    shifted = (logits - logits.amax(-1, keepdim=True).clamp_(max=HIGHEST)).clamp_(max=0.0)
    temperature = temperature[:, None]
    floor = _floor(shifted, temperature, top_k, top_p)
    scaled = shifted / temperature
    noisy = scaled + gumbel_noise(keys, logits.shape[1])
    if floor is not None:
        noisy.masked_fill_(shifted < floor, -torch.inf)
    if (min_p > 0).any():
        noisy.masked_fill_(scaled < min_p.log()[:, None], -torch.inf)
    return noisy.argmax(-1)


def _floor(shifted: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor | None:
    """The least value that top_k and top_p keep of each row, [R, 1]; None without either.

    shifted  [R, V], each row's maximum is 0;  temperature  [R, 1]"""
    vocab_size = shifted.shape[1]
    max_top_k, has_top_p = int(top_k.max()), bool((top_p < 1).any())
    if int(top_k.min()) == vocab_size and not has_top_p:
        return None
    ordered = _largest(shifted, max_top_k)
    floor = ordered.gather(1, top_k[:, None].long() - 1)
    if not has_top_p:
        return floor
    weights = (ordered / temperature).exp().masked_fill(ordered < floor, 0.0)
    before = weights.cumsum(-1) - weights  # the weight of what is likelier
    kept = weights if max_top_k == vocab_size else (  # there may be more equals of the least than are in `ordered`
        (shifted / temperature).exp().masked_fill(shifted < floor, 0.0))
    total = kept.sum(-1, keepdim=True)
    is_cut = (top_p < 1)[:, None] & (before > 0) & (before >= top_p[:, None] * total)
    nucleus = ordered.masked_fill(is_cut, torch.inf).amin(-1, keepdim=True)
    return torch.maximum(floor, nucleus)


def _largest(values: Tensor, count: int) -> Tensor:
    """The count largest of each row, descending."""
    if count < values.shape[1]:
        return values.topk(count).values
    # numpy sorts values alone, in a fifth of the time that torch takes with indices.
    return torch.from_numpy(np.sort(values.numpy())).flip(-1)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own shift of int64 copies the sign."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)  # all three have their highest bit set
