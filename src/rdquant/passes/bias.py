"""Bias correction: what quantization shifts on average, taken back in the integer biases.

Rounded weights and clipped activations move a channel's mean. "empirical" measures the shift of each
convolution's accumulators on pictures, in network order, earlier ones already quantized and corrected
(Nagel et al. 2019, arXiv 1906.04721, section 4.2 and appendix D). "analytic" computes it from the
rounding errors of the weights and the mean of each input channel, borders ignored.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..graph import Node
from ..graph.operations import Convolution
from .twin import Twin
from .walk import walk

BiasCorrection = Literal["none", "empirical", "analytic"]
BIAS_CORRECTIONS: tuple[BiasCorrection, ...] = get_args(BiasCorrection)


@torch.no_grad()
def correct_biases(twin: Twin, names: list[str], x: Tensor, how: BiasCorrection) -> None:
    """Correct the biases of these stages on ``x: (B, 3, H, W)`` of 0..255. Leaves all stages quantized."""
    real: dict[str, Tensor] = {}  # what each convolution takes in when everything is float

    def record(node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
        if isinstance(node.op, Convolution):
            real[node.name] = inputs[0]
        return twin.operate(node, inputs)

    def correct(node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
        if node.name in names:
            layer, log = twin.layer(node.name), twin.in_log(node.name)
            nothing = torch.zeros_like(layer.bias0)
            level = dataclasses.replace(layer.op, weight=layer.levelled(log), bias=nothing)
            weight = dataclasses.replace(layer.op, weight=layer.scaled(log), bias=nothing)
            q, taken = inputs[0], real.pop(node.name, inputs[0])
            if how == "empirical":
                error = (level.convolve(q) - weight.convolve(taken)).mean((0, 2, 3))
            else:
                off = dataclasses.replace(layer.op, weight=level.weight - weight.weight).by_output()
                taps = off.sum((2, 3)) / (layer.op.stride**2 if layer.op.transposed else 1)
                own = q.mean((0, 2, 3)).reshape(layer.op.groups, 1, -1)
                own = own.expand(-1, layer.op.out_channels // layer.op.groups, -1).reshape(len(taps), -1)
                error = (taps * own).sum(1)
            layer.bias.sub_(error / layer.bias_unit)
        return twin.operate(node, inputs)

    for rounded, apply in ((False, record), (True, correct)):
        twin.set_rounding(twin.names(), rounded, rounded)

        def run(name: str, *inputs: Tensor, valid: bool = False, apply: Any = apply) -> Tensor:
            return twin.integer.networks[name].evaluate(inputs, apply)

        walk(twin, x, run)
