"""Model outline: what a model is, without its weights. For plan.py, which plans memory before anything is downloaded.

A workspace says it in config.ini, a Hugging Face folder in config.json; of those the converter knows, which registers
its reader under the entry-point group `millrace.model_outlines`. Some published models are known by name.
Imports no torch."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from backend.config import EngineConfig, ModelConfig, RopeConfig, read_config
from backend.errors import CheckpointError, WorkspaceError
from backend.workspace import CONFIG, Workspace

ENTRY_POINT_GROUP = "millrace.model_outlines"


def read_outline(model: str) -> tuple[ModelConfig, EngineConfig | None]:
    """The configuration of a workspace, a folder with config.json, such a file, or a name of KNOWN_MODELS; and how it
    is run, where that is written down. Raises a MillraceError that names the cure."""
    path = Path(model).expanduser()
    if Workspace.looks_like(path):
        return read_config(path / CONFIG)
    if not path.exists():
        known = KNOWN_MODELS.get(model.lower().replace("_", "."))  # as chats and repositories write it
        if known is not None:
            return known, None
        raise WorkspaceError(f"{model} is neither a workspace, a Hugging Face folder nor its config.json, nor one of "
                             f"{', '.join(KNOWN_MODELS)}; give one of them")
    readers = entry_points(group=ENTRY_POINT_GROUP)
    if not readers:
        raise CheckpointError(f"{path} is no workspace, and nothing that reads other formats is installed; "
                              "run `pip install -e .` in Millrace's folder, or convert it first")
    for reader in readers:
        outline = reader.load()(path)
        if outline is not None:
            return outline, None
    raise CheckpointError(f"{path} is neither a workspace (no triton_models/weights/config.ini) "
                          "nor a Hugging Face checkpoint (no config.json)")


def _known(name: str, vocab_size: int, hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int,
           num_kv_heads: int, max_position_embeddings: int, has_bias: bool = False) -> ModelConfig:
    head_dim = hidden_size // num_heads
    return ModelConfig(
        model_name=name, vocab_size=vocab_size, hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, intermediate_size=intermediate_size, norm_eps=1e-5,
        rope=RopeConfig(head_dim), max_position_embeddings=max_position_embeddings, bos_token_id=None,
        eos_token_ids=(), attention_bias=has_bias)


# Sizes as their config.json publishes them; what memory does not depend on is left at any value.
KNOWN_MODELS = {name.lower(): _known(name, *sizes) for name, sizes in {
    "InternLM2.5-7B": (92544, 4096, 14336, 32, 32, 8, 32768),
    "InternLM2.5-20B": (92544, 6144, 16384, 48, 48, 8, 32768),
    "Llama-2-7B": (32000, 4096, 11008, 32, 32, 32, 4096),
    "Llama-3.1-8B": (128256, 4096, 14336, 32, 32, 8, 131072),
    "Qwen2.5-7B": (152064, 3584, 18944, 28, 28, 4, 32768, True),
}.items()}
