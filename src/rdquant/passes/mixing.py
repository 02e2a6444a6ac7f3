"""Mixing channels before their activations are rounded.

Behind a GDN a few channels carry most of the energy, in tails so heavy that 8 bits of such a channel are
mostly spent on values that hardly occur, and what the next convolution makes of a rounding error depends
strongly on its direction among the channels. So each GDN is followed by an invertible 1x1 convolution
``t = T f``, t is what gets rounded, and ``T^-1`` is multiplied into the convolution that reads it: the float
codec stays the same function. Rotations do this for language models (QuaRot, Ashkboos et al. 2024, arXiv
2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406).

t is rounded channel by channel, and each error is passed on to the channels still to come, so that what
remains lies in directions that matter little: GPTQ's rounding of weights (`rdquant.passes.rounding`)
applied to activations, at run time, with a fixed triangular matrix. T is any invertible matrix, chosen by
gradient for what rounding then costs,

    sum_i r_i(T)^2 (d_i(T) + share * (T^-T W T^-1)_ii)

with ``r_i`` the range of channel i of ``T f`` (a p-norm over positions, nearly the maximum), and ``d_i``
what an error of channel i costs after the later ones have answered: the pivots of ``T^-T W T^-1``. W is the
sensitivity ``E[J^T J]`` of the picture (for the synthesis) or of the latent times its synthesis gain (for
the analysis) to an error in f, from gradients of random signs. The second term, the diagonal, stands for
the rounding of the weights that read t. Without compensation ("plain"), the diagonal alone is the price.

What 8 bits cost then can be had for channels instead: of the first of t there may be two each (``doubled``),
rounded a quarter of a level up and down, and read with half the weight. Both are 8 bits to any engine; their
mean has levels half as far apart, a quarter of the error, and T puts into those channels what costs most.
With a share d of all doubled, ``1 / (1 + 3 d)`` of the cost is left, if T can spread it as it likes. (Outlier
channel splitting, Zhao et al. 2019, arXiv 1901.09504, doubles channels to halve their ranges.)

The latent is mixed as well, exactly (in 16 bits), for the sake of the weights that read it: a latent's
channels are hardly correlated, so the error of one weight cannot be answered by another's. Mixed, it can.

T is stored in `MIXING_BITS` and its input keeps more bits than the activation that is rounded; the exact
inverse of the stored T is folded, so that neither costs anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..errors import CalibrationError
from ..graph import Node
from ..graph.operations import Convolution, DivisiveNormalization
from ..latents import FIXED_HI
from ..pixels import pad_to, to_batch
from ..quality import at_spread, power_at_spread
from .calibration import picture_weight
from .config import QuantizeConfig
from .flow import networks_in_order, output_costs, segment, segment_of, through
from .mixed import Mixing, damped, mixable, reader

#: of T's integers: with 13-bit inputs of 64 channels, sums stay below 2^24, where float32 is exact
MIXING_BITS = 7
#: bits of T's input beyond those of its output
GUARD_BITS = 5
MOST_INPUT_BITS = 15
#: what is mixed of the synthesis's input, and the bits of its T and of its input's fraction
LATENT, LATENT_MIXING_BITS, LATENT_BITS = "y_hat", 10, 8
#: room above the largest input seen
INPUT_HEADROOM = 1.5
#: positions kept of each picture, those of most energy; and how many of them the search begins with
KEPT, FIRST = 4096, 60
#: what the rounding of the weights that read a channel costs, relative to that of the activation if it were
#: not compensated, at equal bits; chosen on the val split
WEIGHT_SHARE = 0.3
#: of the p-norm that stands for a range: gradients reach all large values, not one
NORM = 12.0
#: gradient steps of a round; after each, the positions that now reach furthest join the search
STEPS, ROUNDS, FURTHEST, RATE = 150, 5, 24, 1e-2

#: called with (done, of how many, of what)
Progress = Callable[[int, int, str], None]


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
    codec: Codec,
    pictures: list[np.ndarray],
    parts: list[str],
    gains: Tensor,
    progress: Progress | None,
) -> _Collected:
    sensitivities: dict[str, Tensor] = {}
    latent_energy = torch.zeros(codec.M, codec.M, dtype=torch.float64)
    generator, hyper_generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    flows: dict[str, _Flow] = {}
    mixed = {name for graph in codec.networks.values() for name in mixable(graph)}
    for i, pixels in enumerate(pictures):
        if progress:
            progress(i, len(pictures), "sensitivities")
        shown, costs = at_spread(codec, i), gains * torch.from_numpy(power_at_spread(codec, i))
        x = torch.from_numpy(to_batch(pad_to(pixels, codec.downsampling))).float().contiguous() / 255
        with torch.no_grad():
            passed = through(shown, x)
            weight = picture_weight(passed.x_hat, x)
        y_hat = passed.y_hat[0].flatten(1).double()
        latent_energy += weight * (y_hat @ y_hat.T) / y_hat.shape[1]
        for part in parts:
            outputs: dict[str, Tensor] = {}

            def note(
                network: str, node: Node, taken: tuple[Tensor, ...], out: Tensor, into: dict = outputs
            ) -> None:
                if isinstance(node.op, Convolution | DivisiveNormalization):
                    into[node.name] = out

            h = segment(shown, part, x, passed, note)
            source = generator if part in ("analysis", "synthesis") else hyper_generator
            signs = torch.randint(0, 2, h.shape, generator=source) * 2.0 - 1
            has_means = passed.scales is not None and h.shape[1] > passed.scales.shape[1]
            amplitudes = output_costs(part, costs, passed.scales, has_means).sqrt()
            found = torch.autograd.grad(h, list(outputs.values()), signs * amplitudes, allow_unused=True)
            counts = weight if part in ("analysis", "synthesis") else 1.0
            for (name, out), gradient in zip(outputs.items(), found, strict=True):
                if gradient is None:  # nothing is read of it
                    continue
                f, g = out.detach()[0].flatten(1), gradient[0].flatten(1).double()
                cost = counts * (g @ g.T) / g.shape[1]
                if out is h:  # nothing behind it mixes channels; what else is there is noise of the signs
                    cost = torch.diag(cost.diagonal())
                sensitivities[name] = sensitivities[name] + cost if name in sensitivities else cost
                if name not in mixed:
                    continue
                flow = flows.setdefault(name, _Flow([], torch.zeros(len(f))))
                flow.largest = torch.maximum(flow.largest, f.abs().amax(1))
                flow.pool.append(most_energy(f, flow.largest, KEPT))
    return _Collected(flows, sensitivities, latent_energy)


def rounding_cost(
    matrix: Tensor, samples: Tensor, sensitivity: Tensor, share: float | None, doubled: int = 0
) -> Tensor:
    """The sum above, with a p-norm around each channel's middle for its range.

    ``(C, C)``, ``(C, S)``, ``(C, C)`` -> scalar, float64. ``share``: of the diagonal; None: nothing else.
    ``doubled``: so many channels have half the step, see `Mixing`.
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
    steps = torch.ones_like(ranges)
    steps[:doubled] = 0.5
    return ((steps * ranges).double() ** 2 * price).sum()


@dataclass(frozen=True, eq=False)
class Samples:
    """One edge that a matrix is learned for."""

    pool: Tensor  #: (C, S), all that may decide a range
    first: Tensor  #: indexes into it to begin with
    sensitivity: Tensor  #: (C, C) float64

    @classmethod
    def of(cls, pools: list[Tensor], sensitivity: Tensor, begin: int = FIRST) -> Samples:
        """``pools``: ``(C, S)`` of each picture, most energy first; ``begin``: with so many of each."""
        starts = torch.tensor([0, *(p.shape[1] for p in pools[:-1])]).cumsum(0)
        first = [s + torch.arange(min(begin, p.shape[1])) for s, p in zip(starts, pools, strict=True)]
        return cls(torch.cat(pools, 1), torch.cat(first), sensitivity)


def most_energy(f: Tensor, largest: Tensor, kept: int) -> Tensor:
    """The positions of ``f: (C, S)`` with most energy in units of ``largest: (C,)``, most first; float16."""
    energy = (f / largest[:, None].clamp(min=1e-12)).square().sum(0)
    return f[:, energy.topk(min(kept, f.shape[1])).indices].half()


def learn_matrix(
    edges: list[Samples], share: float | None, seed: int = 0, steps: int | None = None, doubled: int = 0
) -> Tensor:
    """An invertible ``(C, C)`` with a low `rounding_cost` on all edges, by Adam from a random rotation."""
    channels, steps = len(edges[0].pool), steps or STEPS
    generator = torch.Generator().manual_seed(seed)
    start = torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0]
    # channels of one energy to begin with, so that the rate of the steps suits all of them
    means = [e.pool[:, e.first].float().square().mean(1) for e in edges]
    energy = torch.stack(means).mean(0).sqrt().clamp(min=1e-12)
    costs = [e.sensitivity * energy[:, None] * energy[None, :] for e in edges]
    matrix = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([matrix], lr=RATE)
    chosen = [e.first for e in edges]
    for k in range(ROUNDS):
        samples = [e.pool[:, c].float() / energy[:, None] for e, c in zip(edges, chosen, strict=True)]
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * (1 - (k + step / steps) / ROUNDS)
            parts = [rounding_cost(matrix, s, c, share, doubled) for s, c in zip(samples, costs, strict=True)]
            loss = torch.log(torch.stack(parts).sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for i, edge in enumerate(edges):
            pieces = [(matrix.detach() / energy) @ part.float() for part in edge.pool.split(2**16, 1)]
            reached = torch.cat(pieces, 1)
            count = min(FURTHEST, reached.shape[1])
            ends = [reached.topk(count, largest=side).indices.flatten() for side in (True, False)]
            chosen[i] = torch.unique(torch.cat([chosen[i], *ends]))
    found = matrix.detach()
    if not bool(torch.isfinite(found).all()):
        raise CalibrationError("mixing an activation's channels did not converge; pass mixing=none")
    return (found / energy[None, :]).double()


def doubled_of(config: QuantizeConfig, rows: Tensor) -> int:
    """How many of a mixing's channels are doubled; ``rows``: any tensor with a row for each."""
    return round(config.doubled * len(rows)) if config.mixing == "plain" else 0


def find_mixings(
    codec: Codec,
    pictures: list[np.ndarray],
    config: QuantizeConfig,
    gains: Tensor,
    progress: Progress | None = None,
) -> tuple[dict[str, Mixing], dict[str, Tensor]]:
    """A `Mixing` for each GDN of the networks in scope that one convolution reads, if they are wanted, and
    one of the latent (`LATENT`); and the sensitivities of all convolutions, ``(C, C)`` float64 by name.

    ``pictures``: ``(H, W, 3)`` uint8; ``gains: (M,)``: the synthesis gain. Where sensitivities are singular,
    nothing is mixed. Raises `CalibrationError`.
    """
    inside = [name for name in networks_in_order(codec) if config.in_scope(name)]
    found = _collect(codec, pictures, list(dict.fromkeys(map(segment_of, inside))), gains, progress)
    compensated = config.mixing == "compensated"
    mixings: dict[str, Mixing] = {}
    network_of = {n: name for name in inside for n in codec.networks[name].names()}
    wanted = {n: flow for n, flow in found.flows.items() if n in network_of and config.mixing != "none"}
    for i, (gdn, flow) in enumerate(wanted.items()):
        if progress:
            progress(i, len(wanted), f"mixing {gdn}")
        graph, network = codec.networks[network_of[gdn]], network_of[gdn]
        read = reader(graph, gdn)
        assert read is not None
        bits = config.activation_bits_of(gdn, network)
        top = 2 ** (min(bits + GUARD_BITS, MOST_INPUT_BITS) - 1) - 1
        largest = flow.largest.double().clamp(min=1e-3 * float(flow.largest.max()))
        cost = found.sensitivities[gdn]
        share = WEIGHT_SHARE * 4.0 ** (bits - config.bits_of(read.name, network))
        steps = config.mixing_steps
        try:
            samples = Samples.of(flow.pool, cost)
            doubled = doubled_of(config, cost)
            matrix = learn_matrix([samples], share if compensated else None, steps=steps, doubled=doubled)
        except torch.linalg.LinAlgError:  # some directions do not matter at all: there is nothing to mix for
            continue
        scale = INPUT_HEADROOM * largest / top
        mixings[gdn] = Mixing.of(matrix, scale, top, MIXING_BITS, cost if compensated else None, doubled)
    if compensated and "synthesis" in inside:
        read = reader(codec.networks["synthesis"], LATENT)
        if read is not None:
            assert isinstance(read.op, Convolution)
            with contextlib.suppress(torch.linalg.LinAlgError):
                mixings[LATENT] = _latent_mixing(read.op, found.latent_energy, config.mixing_steps)
    gdns = {n for graph in codec.networks.values() for n in graph.names(DivisiveNormalization)}
    return mixings, {k: s for k, s in found.sensitivities.items() if k not in gdns}


def _latent_mixing(first: Convolution, energy: Tensor, steps: int | None) -> Mixing:
    """T of the latent: weights ``w' = T^-T w`` are rounded, and latents ``T y`` weigh their errors.

    The same problem with the roles changed: the ranges are those of weights, the price is that of errors
    under ``T C T^T``, C the second moments of the latent, which compensated rounding of weights makes the
    pivots. Each channel then gets the same range, since the weights of an output have one scale.
    """
    weight = first.by_output()
    rows = weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    pool = rows.transpose(0, 1).flatten(1)  # (M, O * k * k)
    matrix = learn_matrix([Samples(pool, torch.arange(pool.shape[1]), energy)], 0.0, steps=steps)
    matrix = matrix / (matrix @ pool.double()).abs().amax(1, keepdim=True)
    step = torch.full((len(matrix),), 2.0**-LATENT_BITS, dtype=torch.float64)
    return Mixing.of(torch.linalg.inv(matrix).T.contiguous(), step, FIXED_HI, LATENT_MIXING_BITS)
