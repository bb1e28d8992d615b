"""Weight format: how a linear layer's weight is stored and multiplied: dense, or AWQ's four bits.

A format says which tensors a weight consists of, which of their axes run over outputs and inputs, and how many of those
one element stands for; the parallel shape (linear.py) then divides those axes. Two axes of choice, not a product of
classes. Used by linear.py and embedding.py (output head); attention.py and decoder.py choose it for a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backend.config import ModelConfig
from backend.distributed import TensorParallel
from backend.kernels import dispatch as kernels
from backend.layers.parameter import Shard, ShardedModule

OUTPUTS_PER_WORD = 8  # 4-bit values in an int32


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One tensor of a format: its name, its shape, and which axis runs over outputs and which over inputs.

    outputs_each, inputs_each  outputs, inputs that one element of that axis stands for
    dtype                      its own, or None: the compute dtype"""

    name: str
    shape: tuple[int, int]
    output_axis: int
    input_axis: int
    outputs_each: int = 1
    inputs_each: int = 1
    dtype: torch.dtype | None = None

    def divide_outputs(self, parts: tuple[int, ...], tp: TensorParallel) -> Shard:
        """A rank's part where the outputs are a row of parts. Raises ConfigError."""
        return Shard.parts(self.shape, self.output_axis, parts, tp, self.outputs_each)

    def divide_inputs(self, in_features: int, tp: TensorParallel) -> Shard:
        """A rank's part of the inputs. Raises ConfigError."""
        return Shard.parts(self.shape, self.input_axis, (in_features,), tp, self.inputs_each)


class WeightFormat(Protocol):
    """A way to store and to multiply by a weight [out, in]."""

    def tensors(self, in_features: int, out_features: int) -> tuple[StoredWeight, ...]:
        """The tensors that together hold the weight."""
        ...

    def prepare(self, layer: ShardedModule) -> None:
        """Arranges the weight that `layer` now holds for the device it is on; called once, after loading."""
        ...

    def apply(self, inputs: Tensor, layer: ShardedModule, bias: Tensor | None, *,
              norm: tuple[Tensor, float] | None = None, is_gated: bool = False,
              residual: Tensor | None = None) -> Tensor:
        """inputs [T, in] times the weight held by `layer`; the rest as in kernels.linear."""
        ...


class Dense:
    """The weight as one matrix [out, in] in the compute dtype."""

    def tensors(self, in_features: int, out_features: int) -> tuple[StoredWeight, ...]:
        return (StoredWeight("weight", (out_features, in_features), output_axis=0, input_axis=1),)

    def prepare(self, layer: ShardedModule) -> None:
        """On the CPU, a weight with more outputs than inputs is stored input-major: one row then multiplies twice as
        fast (2048 x 384 float32 on one EPYC core: 317 → 161 us), many rows equally fast."""
        out_features, in_features = layer.weight.shape
        if layer.weight.device.type == "cpu" and out_features > in_features:
            layer.set_parameter("weight", layer.weight.t().contiguous().t())

    def apply(self, inputs: Tensor, layer: ShardedModule, bias: Tensor | None, *,
              norm: tuple[Tensor, float] | None = None, is_gated: bool = False,
              residual: Tensor | None = None) -> Tensor:
        return kernels.linear(inputs, layer.weight, bias, norm=norm, is_gated=is_gated, residual=residual)


@dataclass(frozen=True, slots=True)
class Awq:
    """Four bits a weight in the layout that AWQ publishes ("gemm"): weight = (q - zero) * scale, each group of
    group_size inputs with a scale and a zero point per output. Once loaded, what the kernels made of it takes its
    place as `packed`."""

    group_size: int

    def tensors(self, in_features: int, out_features: int) -> tuple[StoredWeight, ...]:
        num_words, num_groups = out_features // OUTPUTS_PER_WORD, in_features // self.group_size
        return (
            StoredWeight("qweight", (in_features, num_words), 1, 0, OUTPUTS_PER_WORD, dtype=torch.int32),
            StoredWeight("qzeros", (num_groups, num_words), 1, 0, OUTPUTS_PER_WORD, self.group_size, torch.int32),
            StoredWeight("scales", (num_groups, out_features), 1, 0, 1, self.group_size, torch.float16))

    def prepare(self, layer: ShardedModule) -> None:
        """Packs for the device, and frees what was loaded: one layer's weights are there twice meanwhile."""
        layer.packed = kernels.pack_w4(layer.qweight, layer.qzeros, layer.scales)
        for name in ("qweight", "qzeros", "scales"):
            layer.drop_parameter(name)

    def apply(self, inputs: Tensor, layer: ShardedModule, bias: Tensor | None, *,
              norm: tuple[Tensor, float] | None = None, is_gated: bool = False,
              residual: Tensor | None = None) -> Tensor:
        return kernels.linear_w4(inputs, layer.packed, bias, norm=norm, is_gated=is_gated, residual=residual)


DENSE = Dense()


def weight_format(model: ModelConfig) -> WeightFormat:
    """How the model's linear layers are stored; its embedding and output head are dense always."""
    return DENSE if model.quant is None else Awq(model.quant.group_size)
