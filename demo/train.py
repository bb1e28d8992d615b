"""Train: the demo checkpoint from nothing, in minutes on one data-centre GPU.

Worker processes generate and tokenise new conversations while the GPU trains, so there are no epochs.
Conversations of similar length form a batch of one conversation per row, each from position zero as at inference,
padded on the right. Needs demo/checkpoint/tokenizer*, which demo/tokenizer.py writes.

    python -m demo.train                                       # writes demo/checkpoint, as published
    python -m demo.train --steps 20 --batch_tokens 4096 --out /tmp/demo    # a rehearsal on a CPU"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from demo.chat_format import CHECKPOINT, ChatFormat
from demo.corpus import training_conversations
from demo.model import DemoConfig, InternLM2ForCausalLM, save

LENGTHS = (256, 512, 1024, 2048)  # a row's padded length
CONTEXT_WEIGHT = 0.1  # loss weight of what is not the assistant's; its structure (JSON, roles) is worth learning
PEAK_LEARNING_RATE = 2e-3
FINAL_LEARNING_RATE = 2e-5
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.1
GRADIENT_NORM = 1.0
LOG_EVERY = 200


class Batches(IterableDataset):
    """Endless batches (tokens [B, L] int32, weights [B, L] float32: the loss weight of predicting each token)."""

    def __init__(self, seed: int, batch_tokens: int) -> None:
        self.seed, self.batch_tokens = seed, batch_tokens

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        chat_format = ChatFormat()
        waiting: dict[int, list[tuple[list[int], list[bool]]]] = {length: [] for length in LENGTHS}
        for conversation in training_conversations(self.seed + (worker.id if worker else 0)):
            ids, is_answer = chat_format.encode_with_targets(conversation)
            length = next((length for length in LENGTHS if len(ids) <= length), None)
            if length is None:
                continue
            rows = waiting[length]
            rows.append((ids, is_answer))
            if len(rows) * length >= self.batch_tokens:
                yield _as_batch(rows, length)
                rows.clear()


def _as_batch(rows: list[tuple[list[int], list[bool]]], length: int) -> tuple[Tensor, Tensor]:
    tokens = np.zeros((len(rows), length), dtype=np.int32)
    weights = np.zeros((len(rows), length), dtype=np.float32)
    for row, (ids, is_answer) in enumerate(rows):
        tokens[row, : len(ids)] = ids
        weights[row, : len(ids)] = np.where(is_answer, 1.0, CONTEXT_WEIGHT)
    return torch.from_numpy(tokens), torch.from_numpy(weights)


def weighted_loss(model: InternLM2ForCausalLM, tokens: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, each weighted by `weights` [B, L] (the first column is not predicted)."""
    logits = model(tokens[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten().long(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()


def learning_rate(progress: float, step: int) -> float:
    """Linear warm-up, then a cosine over `progress` from 0 to 1."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    rate = FINAL_LEARNING_RATE + (PEAK_LEARNING_RATE - FINAL_LEARNING_RATE) * cosine
    return rate * min(1.0, (step + 1) / WARMUP_STEPS)


def train(
    steps: int, max_seconds: float, batch_tokens: int, num_workers: int, seed: int, device: str
) -> InternLM2ForCausalLM:
    """Train for `steps` steps, or for `max_seconds` if those end first; the schedule fits whichever it is."""
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    model = InternLM2ForCausalLM(DemoConfig()).to(device)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {batch_tokens} tokens a batch",
        flush=True,
    )
    optimizer = _optimizer(model, device)
    if device == "cuda":
        for layer in model.model.layers:  # one compilation per row length serves all layers
            layer.compile(dynamic=False)
    loader = DataLoader(
        Batches(seed, batch_tokens),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=8 if num_workers else None,
        pin_memory=device == "cuda",
    )
    started = time.monotonic()
    seen = 0
    for step, (tokens, weights) in enumerate(loader):
        elapsed = time.monotonic() - started
        progress = max(step / steps, elapsed / max_seconds)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, step)
        tokens, weights = tokens.to(device, non_blocking=True), weights.to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16):
            loss = weighted_loss(model, tokens, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += tokens.numel()
        if step % LOG_EVERY == 0:
            print(f"step {step:6d}  loss {loss.item():.4f}  {seen / 1e6:7.1f} M tokens  {elapsed:6.1f} s", flush=True)
    print(f"{step} steps, {seen / 1e6:.0f} M tokens (padding included), {elapsed:.0f} s", flush=True)
    return model


def _optimizer(model: InternLM2ForCausalLM, device: str) -> torch.optim.Optimizer:
    """AdamW; norms are not decayed."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=device == "cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.", epilog="example: python -m demo.train")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint (demo/checkpoint)")
    parser.add_argument("--steps", type=int, default=7000, help="optimizer steps")
    parser.add_argument("--max_seconds", type=float, default=3600.0, help="end earlier, with the schedule completed")
    parser.add_argument("--batch_tokens", type=int, default=65536, help="tokens per step, padding included")
    parser.add_argument("--num_workers", type=int, default=14, help="processes that generate conversations")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = train(
        arguments.steps, arguments.max_seconds, arguments.batch_tokens, arguments.num_workers, arguments.seed, device
    )
    if arguments.out.resolve() != CHECKPOINT.resolve():
        for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(CHECKPOINT / name, arguments.out / name)
    save(model, arguments.out)
    print(f"saved in {arguments.out}")


if __name__ == "__main__":
    main()
