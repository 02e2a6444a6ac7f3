"""Pictures through a float codec, network after network, with an eye on every operation.

The networks of a codec fall into four segments, between latents that are rounded. What an error in one costs
is known at its end (`output_costs`), and gradients go through one segment at a time:

=================  ==========================================================================
"analysis"         pixels -> y
"hyper_analysis"   y -> z
"parameters"       z_hat and y_hat -> scales and means: every other network of the prior
"synthesis"        y_hat -> pixels
=================  ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codec import Codec
from ..graph import Node
from ..priors import Prior, Run, Serial

SEGMENTS = ("analysis", "hyper_analysis", "parameters", "synthesis")
#: passes after which serially coded latents hardly change any more
SERIAL_PASSES = 4

#: called with each network, node, inputs and output that goes by
Note = Callable[[str, Node, tuple[Tensor, ...], Tensor], None]


def segment_of(network: str) -> str:
    return network if network in SEGMENTS else "parameters"


def networks_in_order(codec: Codec) -> list[str]:
    """As data meets them."""
    return ["analysis", *codec.prior.networks, "synthesis"]


@dataclass(frozen=True)
class Passed:
    """What a float codec computes of pictures, latents truly rounded. z and scales: hyperpriors only."""

    y: Tensor  #: (B, M, H/16, W/16), before rounding
    z: Tensor | None
    z_hat: Tensor | None
    scales: Tensor | None
    means: Tensor
    y_hat: Tensor
    x_hat: Tensor  #: (B, 3, H, W), nominally in [0, 1], not clamped


def noting(codec: Codec, note: Note | None) -> Run[Tensor]:
    """``codec``'s networks by name, every operation shown to ``note``; with gradients."""

    def run(name: str, *inputs: Tensor, valid: bool = False) -> Tensor:
        graph = codec.networks[name].valid() if valid else codec.networks[name]
        if note is None:
            return graph.real(*inputs)

        def apply(node: Node, taken: tuple[Tensor, ...]) -> Tensor:
            out = node.op.real(*taken)
            note(name, node, taken, out)
            return out

        return graph.evaluate(inputs, apply)

    return run


def settled(
    prior: Prior, run: Run[Tensor], features: Tensor, y: Tensor, quantize: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """y_hat of a latent coded part by part, found by repeating all parts at once: after each pass one part
    more is final, so that it takes as many as there are parts. (Serial contexts take `SERIAL_PASSES`: nearly
    all is final then.) ``quantize(y, means)`` -> y_hat.
    """
    y_hat = torch.zeros_like(y)
    count = SERIAL_PASSES if isinstance(prior, Serial) else len(prior.parts(*y.shape[1:]))
    for _ in range(count):
        means = prior.all_parameters(run, features, y_hat)[1]
        y_hat = quantize(y, torch.zeros_like(y) if means is None else means)
    return y_hat


def through(codec: Codec, x: Tensor, note: Note | None = None) -> Passed:
    """``x: (B, 3, H, W)`` in [0, 1], sides multiples of the downsampling, through a float codec."""
    run = noting(codec, note)
    y = run("analysis", x)
    centre = torch.from_numpy(codec.medians).reshape(1, -1, 1, 1)

    def quantize(v: Tensor, around: Tensor) -> Tensor:
        return torch.round(v - around) + around

    z = z_hat = scales = None
    if codec.prior.hyper:
        z = run("hyper_analysis", y)
        z_hat = quantize(z, centre)
        features, y_hat = codec.prior.begin(run, z_hat), y
        if codec.prior.has_contexts:
            y_hat = settled(codec.prior, noting(codec, None), features, y, quantize)
        scales, means = codec.prior.all_parameters(run, features, y_hat)
        means = torch.zeros_like(y) if means is None else means
        y_hat = y_hat if codec.prior.has_contexts else quantize(y, means)
    else:
        means = centre.expand_as(y)
        y_hat = quantize(y, means)
    return Passed(y, z, z_hat, scales, means, y_hat, run("synthesis", y_hat))


def segment(codec: Codec, name: str, x: Tensor, passed: Passed, note: Note) -> Tensor:
    """One segment alone, on what flows into it, with gradients; its end (scales and means joined)."""
    run, prior = noting(codec, note), codec.prior

    def leaf(t: Tensor | None) -> Tensor:
        assert t is not None
        return t.detach().clone().requires_grad_(True)

    if name != "parameters":
        return run(name, leaf({"analysis": x, "hyper_analysis": passed.y, "synthesis": passed.y_hat}[name]))
    scales, means = prior.all_parameters(run, prior.begin(run, leaf(passed.z_hat)), leaf(passed.y_hat))
    return scales if means is None else torch.cat([scales, means], 1)


def output_costs(name: str, gains: Tensor, scales: Tensor | None, has_means: bool) -> Tensor:
    """What a squared error of each output of a segment costs, in a unit of the segment's.

    To second order, as in `rdquant.passes.judges.Mismatch`: the picture's squared error for the synthesis,
    that of the latent times its synthesis gain for the analysis, bits for the others. ``scales``: of the
    latent; "parameters" only.
    """
    if name == "synthesis":
        return torch.ones(())
    if name == "analysis":
        return gains.float().reshape(1, -1, 1, 1)
    if name == "hyper_analysis":
        return torch.tensor(0.5)
    assert scales is not None
    per_scale = 1 / (math.log(2) * (scales.clamp(min=0.11) ** 2 + 1 / 12))
    return torch.cat([per_scale, per_scale / 2], 1) if has_means else per_scale
