"""What a codec has to offer to be captured and quantized: rdquant's own, or anybody's.

Any object does that has the members of `TrainedCodec`, and one callable for each network::

    analysis(x)              x: (B, 3, H, W) in [0, 1]      -> y: (B, M, H / s, W / s)
    synthesis(y_hat)         (B, M, H / s, W / s)           -> (B, 3, H, W), nominally in [0, 1]

and for each network of its prior (`rdquant.priors.Prior.networks`), taking what the prior says that it takes.
With a hyperprior these are::

    hyper_analysis(y)        -> z: (B, K, H / t, W / t); of the magnitude of y, if z carries scales alone
    hyper_synthesis(z_hat)   -> for a plain hyperprior (B, 2 M, H / s, W / s), scales and then means, or with
                             Hyperprior(means=False) (B, M, ...) of scales; else features, of any channels,
                             that the networks of the prior take

and for `rdquant.priors.Serial`, say, ``context(y_hat)`` and ``entropy_parameters(features, context)``. A
callable is a method or an `nn.Module`. Modules must be attributes of the object (at any depth); what they may
consist of is said in `rdquant.graph.capture`. Scales are standard deviations of y in steps of its rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor

from ..errors import BadModel
from ..priors import Prior


class Density(Protocol):
    """A factorized density over integers: of z, or of y without a hyperprior.

    `rdquant.codecs.bottleneck.EntropyBottleneck` is one. CompressAI's is taken too, see `capture`.
    """

    def medians(self) -> Tensor:
        """``(1, C, 1, 1)``: what symbols of each channel count from."""
        ...

    def pmfs(self) -> tuple[list[np.ndarray], list[int], list[float]]:
        """Per channel: probabilities of successive integers, the first of them, the mass outside."""
        ...


class TrainedCodec(Protocol):
    """The members that are no networks; see the module's text."""

    @property
    def architecture(self) -> str:
        """Any name: what files say of the codec."""
        ...

    @property
    def prior(self) -> Prior: ...

    @property
    def entropy_bottleneck(self) -> Density: ...


def network(codec: TrainedCodec, name: str) -> Callable[..., Tensor]:
    """A network by the name that `Prior.networks` has for it. Raises `BadModel` if ``codec`` lacks it.

    "parameters" is the attribute ``entropy_parameters``, since modules have other ``parameters``.
    """
    found = getattr(codec, "entropy_parameters" if name == "parameters" else name, None)
    if not callable(found):
        raise BadModel(f"the codec {codec.architecture!r} has no network {name!r}, which its prior needs")
    return found
