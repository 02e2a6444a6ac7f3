"""Scales of activations and weights, tried one after another at a few factors, by J of the codec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..codec import Codec
from .calibration import LEAST_MSE
from .flow import through
from .mixed import is_mixing
from .suffix import SuffixCost
from .twin import Twin

#: factors that are tried on the scales of an activation
SCALE_GRID = (0.7, 0.8, 0.9, 1.1, 1.25)
#: and of a layer's weights
WEIGHT_GRID = (0.7, 0.8, 0.9, 1.12)


@torch.no_grad()
def float_errors(codec: Codec, x: Tensor) -> Tensor:
    """What a float codec leaves of pictures ``(B, 3, H, W)``, 0..255: squared errors ``(B,)``."""
    x_hat = (through(codec, x / 255).x_hat * 255).clamp(0, 255)
    return (x_hat - x).square().mean((1, 2, 3)).clamp(min=LEAST_MSE)


@torch.no_grad()
def activation_grid(
    twin: Twin,
    names: list[str],
    x: Tensor,
    lambda_: float,
    reference: Tensor | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Logarithms of the factors on the scales of each edge that can move, in network order, by J of ``x``.

    Later stages are in float, and so are all weights, since they are rounded for the scales that stay.

    Only of the stages ``names``. ``reference``: see `SuffixCost`. Leaves every stage quantized.
    """
    order = twin.names()
    twin.set_rounding(order, False, False)
    suffix = SuffixCost(twin, x, lambda_, reference)
    found: dict[str, float] = {}
    for name in order:
        suffix.advance(name)
        twin.set_rounding([name], False, True)
        for key, log in {edge: twin.log(edge) for edge in twin.scale_edges(name) if name in names}.items():
            base, costs = log.clone(), {1.0: suffix.cost()}
            for factor in SCALE_GRID:
                log.copy_(base + math.log(factor))
                costs[factor] = suffix.cost()
            found[key] = math.log(min(costs, key=lambda f: costs[f]))
            log.copy_(base + found[key])
        if report:
            report(name)
    twin.set_rounding(order, True, True)
    return found


@torch.no_grad()
def weight_grid(
    twin: Twin,
    others: Mapping[float, Twin],
    names: list[str],
    x: Tensor,
    lambda_: float,
    reference: Tensor | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """The same of the scales of weights, by ``NAME.weight``, which should be rounded to nearest.

    ``others``: the twin with these scales at other factors. Leaves every stage quantized, each from whichever
    twin was best.
    """
    order = twin.names()
    twin.set_rounding(order, False, False)
    suffix = SuffixCost(twin, x, lambda_, reference)
    found: dict[str, float] = {}
    for name in order:
        suffix.advance(name)
        twin.set_rounding([name], True, True)
        if name not in names or is_mixing(name):
            continue
        own = twin.with_stages_of(lambda _: twin)
        costs = {1.0: suffix.cost()}
        for factor, other in others.items():
            twin.adopt(name, other)
            costs[factor] = suffix.cost()
        best = min(costs, key=lambda f: costs[f])
        twin.adopt(name, own if best == 1 else others[best])
        found[f"{name}.weight"] = math.log(best)
        if report:
            report(name)
    return found
