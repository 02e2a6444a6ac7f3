"""Mixing channels before their activations are rounded.

Behind a GDN a few channels carry most of the energy, in tails so heavy that 8 bits of such a channel are
mostly spent on values that hardly occur, and what the next convolution makes of a rounding error depends
strongly on its direction among the channels. So each GDN is followed by an invertible 1x1 convolution
``t = T f``, t is what gets rounded, and ``T^-1`` is multiplied into the convolution that reads it: the float
codec stays the same function. Rotations do this for language models (QuaRot, Ashkboos et al. 2024, arXiv
2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406).

t is rounded channel by channel, and each error is passed on to the channels still to come, so that what
remains lies in directions that matter little: GPTQ's rounding of weights (`rdquant.weights.rounding`)
applied to activations, at run time, with a fixed triangular matrix. T is any invertible matrix, chosen by
gradient for what rounding then costs,

    sum_i r_i(T)^2 (d_i(T) + share * (T^-T W T^-1)_ii)

with ``r_i`` the range of channel i of ``T f`` (a p-norm over positions, nearly the maximum), and ``d_i``
what an error of channel i costs after the later ones have answered: the pivots of ``T^-T W T^-1``. W is the
sensitivity ``E[J^T J]`` of the picture (for the synthesis) or of the latent times its synthesis gain (for
the analysis) to an error in f, from gradients of random signs. The second term, the diagonal, stands for
the rounding of the weights that read t. Without compensation ("plain"), the diagonal alone is the price.

The latent is mixed as well, exactly (in 16 bits), for the sake of the weights that read it: a latent's
channels are hardly correlated, so the error of one weight cannot be answered by another's. Mixed, it can.

T is stored in `MIXING_BITS` and its input keeps more bits than the activation that is rounded; the exact
inverse of the stored T is folded, so that neither costs anything.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..codecs.base import Rounded
from ..codecs.layers import GDN
from ..errors import CalibrationError
from ..latents import FIXED_HI
from ..pixels import pad_to, to_tensor
from .calibration import picture_weight
from .config import QuantizeConfig, mixing_name
from .rounding import followers

#: of T's integers: with 13-bit inputs of 64 channels, sums stay below 2^24, where float32 is exact
MIXING_BITS = 7
#: bits of T's input beyond those of its output
GUARD_BITS = 5
MOST_INPUT_BITS = 15
#: the stage that mixes the latent before g_s, and the bits of its T and of its input's fraction
LATENT, LATENT_MIXING_BITS, LATENT_BITS = "g_s.m", 10, 8
#: room above the largest input seen
INPUT_HEADROOM = 1.5
#: positions kept of each picture, those of most energy; and how many of them the search begins with
KEPT, FIRST = 4096, 60
#: added to the diagonal of W, as a fraction of its mean
DAMPING = 1e-3
#: what the rounding of the weights that read a channel costs, relative to that of the activation if it were
#: not compensated, at equal bits; chosen on the val split
WEIGHT_SHARE = 0.3
#: of the p-norm that stands for a range: gradients reach all large values, not one
NORM = 12.0
#: gradient steps of a round; after each, the positions that now reach furthest join the search
STEPS, ROUNDS, FURTHEST, RATE = 150, 5, 24, 1e-2

#: called with (done, of how many, of what)
Progress = Callable[[int, int, str], None]


class Mixing(nn.Conv2d):
    """``t = T f``, ``T = levels * unit / input_scale`` exactly.

    ``levels: (C, C)`` integers; ``unit: (C,)`` by row; ``input_scale: (C,)``: what one of the integers that
    enter stands for; they lie in ``+-input_top``. ``sensitivity: (C, C)``: W, or None not to compensate.
    """

    FIELDS = ("levels", "unit", "input_scale", "input_top", "bits", "sensitivity")

    def __init__(
        self,
        levels: Tensor,
        unit: Tensor,
        input_scale: Tensor,
        input_top: int,
        bits: int,
        sensitivity: Tensor | None,
    ) -> None:
        super().__init__(len(levels), len(levels), 1, bias=False)
        self.levels, self.unit, self.input_scale = levels, unit, input_scale
        self.input_top, self.bits, self.sensitivity = input_top, bits, sensitivity
        with torch.no_grad():
            self.weight.copy_(self.matrix()[:, :, None, None])

    def matrix(self) -> Tensor:
        """T, float64."""
        return self.levels.double() * self.unit[:, None] / self.input_scale[None, :]

    def feedback(self, scale: Tensor) -> Tensor:
        """What an error of one in channel i adds to channel j > i, float64 ``(C, C)``.

        ``scale: (C,)``: of the rounded activations. Strictly upper triangular; zero without compensation.
        """
        if self.sensitivity is None:
            return torch.zeros(len(scale), len(scale), dtype=torch.float64)
        inverse = torch.linalg.inv(self.matrix()) * scale[None, :]
        cost = inverse.T @ damped(self.sensitivity) @ inverse
        return -torch.triu(followers(cost), 1)

    @classmethod
    def of(
        cls, matrix: Tensor, input_scale: Tensor, input_top: int, bits: int, sensitivity: Tensor | None = None
    ) -> Mixing:
        """``matrix: (C, C)`` rounded to what is stored."""
        scaled = matrix.double() * input_scale
        unit = scaled.abs().amax(1) / (2 ** (bits - 1) - 1)
        levels = torch.round(scaled / unit[:, None]).to(torch.int16)
        return cls(levels, unit, input_scale, input_top, bits, sensitivity)


def damped(sensitivity: Tensor) -> Tensor:
    """W with a little of its mean added to all directions: errors must not pile up in the least."""
    mean = sensitivity.diagonal().mean()
    return sensitivity + DAMPING * mean * torch.eye(len(sensitivity), dtype=sensitivity.dtype)


@dataclass
class _Flow:
    """What is known of one GDN's output. ``pool``: ``(C, S)`` float16 of each picture, most energy first."""

    pool: list[Tensor]
    largest: Tensor  #: (C,)


@dataclass
class _Collected:
    flows: dict[str, _Flow]  #: by GDN
    sensitivities: dict[str, Tensor]  #: by GDN or convolution, of its output; (C, C) float64
    latent_energy: Tensor  #: second moments of y_hat, (M, M) float64


def _collect(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    parts: list[str],
    gains: Tensor,
    progress: Progress | None,
) -> _Collected:
    sensitivities: dict[str, Tensor] = {}
    latent_energy = torch.zeros(codec.M, codec.M, dtype=torch.float64)
    generator, hyper_generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    flows: dict[str, _Flow] = {}
    for i, pixels in enumerate(pictures):
        if progress:
            progress(i, len(pictures), "sensitivities")
        x = to_tensor(pad_to(pixels, codec.downsampling)).float() / 255
        with torch.no_grad():
            passed = codec.rounded(x)
            weight = picture_weight(passed.x_hat, x)
        y_hat = passed.y_hat[0].flatten(1).double()
        latent_energy += weight * (y_hat @ y_hat.T) / y_hat.shape[1]
        for part in parts:
            h = _input(codec, part, x, passed).clone().requires_grad_(True)
            outputs: dict[str, Tensor] = {}
            for name, module in getattr(codec, part).named_children():
                h = module(h)
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | GDN):
                    outputs[f"{part}.{name}"] = h
            source = hyper_generator if part.startswith("h") else generator
            signs = torch.randint(0, 2, h.shape, generator=source) * 2.0 - 1
            amplitudes = output_costs(part, gains, passed.scales, codec.has_means).sqrt()
            gradients = torch.autograd.grad(h, list(outputs.values()), signs * amplitudes)
            counts = weight if part in ("g_a", "g_s") else 1.0
            for (name, out), gradient in zip(outputs.items(), gradients, strict=True):
                f, g = out.detach()[0].flatten(1), gradient[0].flatten(1).double()
                cost = counts * (g @ g.T) / g.shape[1]
                if out is h:  # nothing behind it mixes channels; what else is there is noise of the signs
                    cost = torch.diag(cost.diagonal())
                sensitivities[name] = sensitivities[name] + cost if name in sensitivities else cost
                if not isinstance(getattr(codec, part).get_submodule(name.split(".")[1]), GDN):
                    continue
                flow = flows.setdefault(name, _Flow([], torch.zeros(len(f))))
                flow.largest = torch.maximum(flow.largest, f.abs().amax(1))
                energy = (f / flow.largest[:, None].clamp(min=1e-12)).square().sum(0)
                flow.pool.append(f[:, energy.topk(min(KEPT, f.shape[1])).indices].half())
    return _Collected(flows, sensitivities, latent_energy)


def _input(codec: FloatCodec, part: str, x: Tensor, passed: Rounded) -> Tensor:
    """What one of the networks takes."""
    if part == "h_a":
        return codec.hyper_input(passed.y)
    found = {"g_a": x, "g_s": passed.y_hat, "h_s": passed.z_hat}[part]
    assert found is not None
    return found


def output_costs(part: str, gains: Tensor, scales: Tensor | None, has_means: bool) -> Tensor:
    """What a squared error of each output of a network costs, in a unit of the network's.

    To second order, as in `rdquant.weights.judges.Mismatch`: the picture's squared error for g_s, that of the
    latent times its synthesis gain for g_a, bits for h_a and h_s. ``scales``: what h_s gives; h_s only.
    """
    if part == "g_s":
        return torch.ones(())
    if part == "g_a":
        return gains.float().reshape(1, -1, 1, 1)
    if part == "h_a":
        return torch.tensor(0.5)
    assert scales is not None
    per_scale = 1 / (math.log(2) * (scales.clamp(min=0.11) ** 2 + 1 / 12))
    return torch.cat([per_scale, per_scale / 2], 1) if has_means else per_scale


def rounding_cost(matrix: Tensor, samples: Tensor, sensitivity: Tensor, share: float | None) -> Tensor:
    """The sum above, with a p-norm around each channel's middle for its range.

    ``(C, C)``, ``(C, S)``, ``(C, C)`` -> scalar, float64. ``share``: of the diagonal; None: nothing else.
    """
    t = matrix @ samples
    middle = (t.detach().amax(1, keepdim=True) + t.detach().amin(1, keepdim=True)) / 2
    t = (t - middle).abs()
    top = t.detach().amax(1, keepdim=True).clamp(min=1e-30)
    ranges = top[:, 0] * ((t / top) ** NORM).mean(1) ** (1 / NORM)
    inverse = torch.linalg.inv(matrix.double())
    cost = inverse.T @ damped(sensitivity) @ inverse
    price = cost.diagonal()
    if share is not None:
        price = share * price + torch.linalg.cholesky(torch.linalg.inv(cost)).diagonal() ** -2
    return (ranges.double() ** 2 * price).sum()


def learn_matrix(
    pool: Tensor,
    first: Tensor,
    sensitivity: Tensor,
    share: float | None,
    seed: int = 0,
    steps: int | None = None,
) -> Tensor:
    """An invertible ``(C, C)`` with a low `rounding_cost`, by Adam from a random rotation.

    ``pool: (C, S)``: all that may decide a range; ``first``: indexes into it to begin with.
    """
    channels, steps = len(pool), steps or STEPS
    generator = torch.Generator().manual_seed(seed)
    start = torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0]
    # channels of one energy to begin with, so that the rate of the steps suits all of them
    energy = pool[:, first].float().square().mean(1).sqrt().clamp(min=1e-12)
    sensitivity = sensitivity * energy[:, None] * energy[None, :]
    matrix = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([matrix], lr=RATE)
    chosen = first
    for k in range(ROUNDS):
        samples = pool[:, chosen].float() / energy[:, None]
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * (1 - (k + step / steps) / ROUNDS)
            loss = torch.log(rounding_cost(matrix, samples, sensitivity, share))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        reached = torch.cat([(matrix.detach() / energy) @ part.float() for part in pool.split(2**16, 1)], 1)
        count = min(FURTHEST, reached.shape[1])
        ends = [reached.topk(count, largest=side).indices.flatten() for side in (True, False)]
        chosen = torch.unique(torch.cat([chosen, *ends]))
    found = matrix.detach()
    if not bool(torch.isfinite(found).all()):
        raise CalibrationError("mixing an activation's channels did not converge; pass mixing=none")
    return (found / energy[None, :]).double()


def find_mixings(
    codec: FloatCodec,
    pictures: list[np.ndarray],
    config: QuantizeConfig,
    gains: Tensor,
    progress: Progress | None = None,
) -> tuple[dict[str, Mixing], dict[str, Tensor]]:
    """A `Mixing` for each GDN of the networks in scope, by its name (``g_s.1``), if they are wanted; and
    the sensitivities of all convolutions, ``(C, C)`` float64 by name.

    ``pictures``: ``(H, W, 3)`` uint8; ``gains: (M,)``: the synthesis gain. Raises `CalibrationError`.
    """
    parts = [p for p in config.scope if hasattr(codec, p)]
    found = _collect(codec, pictures, parts, gains, progress)
    sensitivities = found.sensitivities
    compensated = config.mixing == "compensated"
    mixings: dict[str, Mixing] = {}
    for i, (gdn, flow) in enumerate(found.flows.items() if config.mixing != "none" else ()):
        if progress:
            progress(i, len(found.flows), f"mixing {gdn}")
        bits = config.activation_bits_of(conv_before(codec, gdn))
        top = 2 ** (min(bits + GUARD_BITS, MOST_INPUT_BITS) - 1) - 1
        largest = flow.largest.double().clamp(min=1e-3 * float(flow.largest.max()))
        pool = torch.cat(flow.pool, 1)
        starts = torch.tensor([0, *(p.shape[1] for p in flow.pool[:-1])]).cumsum(0)
        first = torch.cat(
            [s + torch.arange(min(FIRST, p.shape[1])) for s, p in zip(starts, flow.pool, strict=True)]
        )
        cost = sensitivities[gdn]
        share = WEIGHT_SHARE * 4.0 ** (bits - config.bits_of(_neighbour(codec, gdn, 1)))
        steps = config.mixing_steps
        matrix = learn_matrix(pool, first, cost, share if compensated else None, steps=steps)
        scale = INPUT_HEADROOM * largest / top
        mixings[gdn] = Mixing.of(matrix, scale, top, MIXING_BITS, cost if compensated else None)
    if compensated and "g_s" in parts:
        mixings[LATENT] = _latent_mixing(codec, found.latent_energy, config.mixing_steps)
    return mixings, {k: s for k, s in sensitivities.items() if k not in found.flows}


def _latent_mixing(codec: FloatCodec, energy: Tensor, steps: int | None) -> Mixing:
    """T of the latent: weights ``w' = T^-T w`` are rounded, and latents ``T y`` weigh their errors.

    The same problem with the roles changed: the ranges are those of weights, the price is that of errors
    under ``T C T^T``, C the second moments of the latent, which compensated rounding of weights makes the
    pivots. Each channel then gets the same range, since the weights of an output have one scale.
    """
    first = codec.g_s[0]
    assert isinstance(first, nn.Conv2d | nn.ConvTranspose2d)
    weight = first.weight.detach()
    if isinstance(first, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    rows = weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    pool = rows.transpose(0, 1).flatten(1)  # (M, O * k * k)
    matrix = learn_matrix(pool, torch.arange(pool.shape[1]), energy, 0.0, steps=steps)
    matrix = matrix / (matrix @ pool.double()).abs().amax(1, keepdim=True)
    step = torch.full((codec.M,), 2.0**-LATENT_BITS, dtype=torch.float64)
    return Mixing.of(torch.linalg.inv(matrix).T.contiguous(), step, FIXED_HI, LATENT_MIXING_BITS)


def _neighbour(codec: FloatCodec, gdn: str, distance: int) -> str:
    part, name = gdn.split(".")
    names = [n for n, _ in getattr(codec, part).named_children()]
    return f"{part}.{names[names.index(name) + distance]}"


def conv_before(codec: FloatCodec, gdn: str) -> str:
    """The convolution whose stage a GDN belongs to: ``g_s.1`` -> ``g_s.0``."""
    return _neighbour(codec, gdn, -1)


def insert(codec: FloatCodec, mixings: dict[str, Mixing]) -> FloatCodec:
    """``mixings`` by GDN (``g_s.1``) or `LATENT` into a copy of the codec, their inverses into what reads
    them.
    """
    mixed = copy.deepcopy(codec)
    for part in {name.split(".")[0] for name in mixings}:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        inverse: Tensor | None = None
        if part == "g_s" and LATENT in mixings:
            modules[LATENT.split(".")[1]] = mixings[LATENT]
            inverse = torch.linalg.inv(mixings[LATENT].matrix())
        for name, module in getattr(mixed, part).named_children():
            modules[name] = module
            if inverse is not None and isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                equation = "iokl,ij->jokl" if isinstance(module, nn.ConvTranspose2d) else "oikl,ij->ojkl"
                folded = torch.einsum(equation, module.weight.detach().double(), inverse)
                module.weight = nn.Parameter(folded.float())
                inverse = None
            mixing = mixings.get(f"{part}.{name}")
            if mixing is not None:
                modules[mixing_name(conv_before(codec, f"{part}.{name}")).split(".")[1]] = mixing
                inverse = torch.linalg.inv(mixing.matrix())
        setattr(mixed, part, nn.Sequential(modules))
    return mixed


__all__ = ["Mixing", "find_mixings", "insert", "learn_matrix", "rounding_cost"]
