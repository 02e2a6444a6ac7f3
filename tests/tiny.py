"""Tiny codecs of every prior, float or integer: one random convolution a network."""

from __future__ import annotations

import numpy as np
import torch

from rdquant.codec import Codec
from rdquant.coder import ImageCoder
from rdquant.entropy import gaussian_tables, scale_boundaries, scale_table, scale_thresholds
from rdquant.files.container import Profile, Quantizer
from rdquant.graph import Graph, Node, Port
from rdquant.graph.arithmetic import Multiplier
from rdquant.graph.operations import Concatenate, Convolution, Requantize
from rdquant.latents import FIXED_HI, FIXED_LO, FixedPointScalar, UniformScalar
from rdquant.latents.coding import ScalarCoding, TrellisCoding
from rdquant.latents.rdoq import Rdoq
from rdquant.priors import ChannelGroups, Factorized, FourPart, Hyperprior, Prior, Serial

M, N = 8, 4
KINDS: dict[str, Prior] = {
    "factorized": Factorized(),
    "hyperprior": Hyperprior(means=False),
    "mean": Hyperprior(),
    "serial": Serial(),
    "checkerboard": ChannelGroups((M,)),
    "groups": ChannelGroups((1, 2, 5)),
    "plain-groups": ChannelGroups((2, 6), checkerboard=False),
    "four-part": FourPart(),
}
TRELLISES = [kind for kind, prior in KINDS.items() if prior.no_trellis is None]
#: those that are coded in several parts
CONTEXTS = ["serial", "checkerboard", "groups", "plain-groups", "four-part"]
GAINS, LAMBDA = np.full(M, 600.0), 0.01
#: pixels of a side for a position of y; z has half as many
STRIDE = 4
PIXELS, LATENT = (0, 255), (FIXED_LO, FIXED_HI)
#: of pixels and of latents in an integer codec, for 1 in a float one
UNITS = {PIXELS: 255, LATENT: 256}


def _mask(name: str) -> np.ndarray | int:
    mask = np.ones((5, 5), np.int64)
    if name == "context":
        mask[2, 2:] = 0
        mask[3:] = 0
        return mask
    if name.startswith("spatial"):
        mask[::2, ::2] = mask[1::2, 1::2] = 0
        return mask
    return 1


def _network(
    name: str, sources: dict[str, int], out: int, kernel: int, gain: float, offset: np.ndarray, integer: bool,
    stride: int = 1,
) -> Graph:  # fmt: skip
    """``gain``: of independent inputs, in integers; ``offset: (out,)``, in integers of the output."""
    up = name in ("synthesis", "hyper_synthesis")
    given, gives = PIXELS if name == "analysis" else LATENT, PIXELS if name == "synthesis" else LATENT
    channels = sum(sources.values())
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    shape = (*((channels, out) if up else (out, channels)), kernel, kernel)
    weight = torch.randint(-63, 64, shape, generator=generator).numpy() * _mask(name)
    factor = gain / (36 * np.sqrt(channels * kernel**2 / (stride**2 if up else 1)))
    nodes = [Node("all", Concatenate(), tuple(sources))] if len(sources) > 1 else []
    reads = ("all",) if nodes else tuple(sources)
    if integer:
        bias, one = np.round(offset / factor).astype(np.int64), np.full(out, factor)
        nodes += [
            Node("conv", Convolution(weight.astype(np.int16), bias, stride, kernel // 2, up, bits=8), reads),
            Node("out", Requantize(Multiplier.from_float(one), None, *gives), ("conv",)),
        ]
    else:
        real = [
            torch.from_numpy(t).float()
            for t in (weight * factor * UNITS[given] / UNITS[gives], offset / UNITS[gives])
        ]
        nodes += [Node("conv", Convolution(*real, stride, kernel // 2, up), reads)]
    return Graph({s: Port(c, *given) for s, c in sources.items()}, tuple(nodes), nodes[-1].name)


def make_codec(prior: Prior, integer: bool = True) -> Codec:
    """y has M channels at a 4th of the pixels' positions, z N at an 8th. Latents are lively."""
    zero, widths = np.zeros(99), {"y": M, "y_hat": M, "z": N}
    networks = {
        "analysis": _network("analysis", {"x": 3}, M, 5, 3, zero[:M], integer, STRIDE),
        "synthesis": _network("synthesis", {"y_hat": M}, 3, 5, 0.04, zero[:3] + 128, integer, STRIDE),
    }
    outputs = prior.outputs(M)
    for name, sources in prior.networks.items():
        given, group = {s: widths[s] for s in sources}, name.rsplit("_", 1)[-1]
        if isinstance(prior, ChannelGroups) and "y_hat" in given:
            own = prior.groups[int(group)] if name.startswith("spatial") else sum(prior.groups[: int(group)])
            given["y_hat"] = own
        widths[name] = N if name == "hyper_analysis" else 6
        offset = zero[: widths[name]]
        if name in outputs:
            scales = np.logspace(5, 10, outputs[name], base=2)
            offset = np.concatenate([scales, 0 * scales]) if getattr(prior, "means", False) else scales
            widths[name] = len(offset)
        kernel = 1 if name in prior.pointwise else 3 if name.startswith("hyper") else 5
        stride = 2 if name.startswith("hyper") else 1
        networks[name] = _network(name, given, widths[name], kernel, 0.5, offset, integer, stride)
    factorized = gaussian_tables(np.linspace(1, 4, N if prior.hyper else M))
    medians = np.arange(len(factorized), dtype=np.int32) * 30 - 40
    gaussian = gaussian_tables(scale_table())
    boundaries = scale_boundaries(scale_table())
    thresholds = scale_thresholds(boundaries, 8) if integer else boundaries
    return Codec(
        "tiny",
        networks,
        prior,
        gaussian if prior.hyper else factorized,
        factorized if prior.hyper else None,
        thresholds if prior.hyper else None,
        medians if integer else (medians / 256).astype(np.float32),
        FixedPointScalar(8) if integer else UniformScalar(),
    )


def make_coder(kind: str, profile: Profile = Profile.INTEGER) -> ImageCoder:
    codec = make_codec(KINDS[kind], profile is Profile.INTEGER)
    if codec.integer:
        codec.check()
    return ImageCoder(codec, b"tinytiny", profile)


def with_coding(plain: ImageCoder, quantizer: str) -> ImageCoder:
    coding = ScalarCoding(Rdoq(GAINS, LAMBDA)) if quantizer == "rdoq" else None
    if quantizer.startswith("tcq"):
        coding = TrellisCoding(Quantizer[quantizer.upper()], 170, GAINS, LAMBDA)  # type: ignore[assignment]
    return ImageCoder(plain.codec, plain.fingerprint, plain.profile, coding)
