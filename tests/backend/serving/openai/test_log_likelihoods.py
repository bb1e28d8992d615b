"""Log-likelihoods as lm-eval's local-completions asks for them, beside those of transformers on the same weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.backend.serving.openai.conftest import CHECKPOINT

BOUND = 1e-3  # on the sum over a continuation; float32 on both sides
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HIDDEN, LAYERS = 6, 2, 64, 384, 6
PAIRS = [("The fox and the rabbit", " went to the river and sat by the water until the sun went down."),
         ("Once upon a time,", " there was a little owl who could not sleep."),
         ("2 + 3 =", " 5"), ("2 + 3 =", " 6"), ("", "My name is Anna."),
         ("Tell me a story. " * 20, "The cat slept under the old tree, and nobody woke it."),
         ("A café", " 咖啡 for €3")]


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    """InternLM2 is LLaMA under other names: its `wqkv` has, for each KV head, the query heads, then key, then value."""
    weights = {name: tensor.float() for file in sorted(CHECKPOINT.glob("*.safetensors"))
               for name, tensor in load_file(file).items()}
    state = {"model.embed_tokens.weight": weights["model.tok_embeddings.weight"],
             "model.norm.weight": weights["model.norm.weight"], "lm_head.weight": weights["output.weight"]}
    group = NUM_HEADS // NUM_KV_HEADS
    for layer in range(LAYERS):
        theirs, ours = f"model.layers.{layer}.", f"model.layers.{layer}."
        heads = weights[ours + "attention.wqkv.weight"].view(NUM_KV_HEADS, group + 2, HEAD_DIM, HIDDEN)
        parts = {"self_attn.q_proj": heads[:, :group], "self_attn.k_proj": heads[:, group],
                 "self_attn.v_proj": heads[:, group + 1]}
        state |= {f"{theirs}{name}.weight": part.reshape(-1, HIDDEN) for name, part in parts.items()}
        for name, old in (("self_attn.o_proj", "attention.wo"), ("mlp.gate_proj", "feed_forward.w1"),
                          ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2"),
                          ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm")):
            state[f"{theirs}{name}.weight"] = weights[f"{ours}{old}.weight"]
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=3072, hidden_size=HIDDEN, intermediate_size=896, num_hidden_layers=LAYERS,
        num_attention_heads=NUM_HEADS, num_key_value_heads=NUM_KV_HEADS, head_dim=HEAD_DIM,
        max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=False)).float().eval()
    model.load_state_dict(state)
    return model


@torch.inference_mode()
def log_likelihood(model: LlamaForCausalLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """(sum over the continuation, whether it is what greedy decoding gives)."""
    logprobs = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
    rows = logprobs[len(context) - 1:-1]
    chosen = rows[range(len(continuation)), continuation]
    return float(chosen.sum()), bool((rows.argmax(-1) == torch.tensor(continuation)).all())


@torch.inference_mode()
def likeliest_continuation(model: LlamaForCausalLM, context: list[int], count: int) -> list[int]:
    ids = list(context)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(context):]


def test_log_likelihoods_equal_those_of_transformers(api, reference):
    front_end = api.context.front_end
    contexts = [front_end.prompt_ids(context) for context, _ in PAIRS]
    continuations = [front_end.tokenizer.encode(continuation) for _, continuation in PAIRS]
    contexts.append(contexts[0])
    continuations.append(likeliest_continuation(reference, contexts[0], 6))
    prompts = [context + continuation for context, continuation in zip(contexts, continuations, strict=True)]
    answer = api.ask("/v1/completions", prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    verdicts = set()
    for context, continuation, choice in zip(contexts, continuations, answer["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(context) + len(continuation) + 1
        tokens = logprobs["token_logprobs"][len(context):-1]
        likeliest = [max(top.values()) for top in logprobs["top_logprobs"][len(context):-1]]
        expected, is_greedy = log_likelihood(reference, context, continuation)
        assert abs(sum(tokens) - expected) < BOUND
        assert (tokens == likeliest) is is_greedy
        verdicts.add(is_greedy)
    assert verdicts == {True, False}
