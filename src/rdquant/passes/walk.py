"""Pictures through every network of a twin once, whoever runs them."""

from __future__ import annotations

from torch import Tensor

from ..priors import Run
from .twin import Twin


def walk(twin: Twin, x: Tensor, run: Run) -> None:
    """``run`` each network, in order, on what the twin's present state makes flow into it.

    ``x: (B, 3, H, W)`` of 0..255; inputs of networks are in the integers' units.
    """
    prior = twin.integer.prior
    y = run("analysis", x)
    if prior.hyper:
        z_hat = twin.hyper_symbols(run("hyper_analysis", y))[1]
        prior.all_parameters(run, prior.begin(run, z_hat), twin.latents(y)[0])
    run("synthesis", twin.latents(y)[0])
