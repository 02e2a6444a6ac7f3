"""The differentiable twin of an integer codec: what the RD calibration moves.

The twin computes in the integer codec's own units. Every parameter is a correction that is zero at the
start, so a fresh twin is the codec it was made from (biases to float32 accuracy), and `export` writes the
corrections back into integers. What can move, per stage:

==============  ==========================================================================================
``out_log``     log of each output channel's activation scale; the next stage's weights follow
``unit_log``    log of each output channel's weight scale
``weight``      the unrounded weights, in units of the levels' mean distance (learned rounding)
``bias``        biases, in units that make a step of 1 a visible one
``gamma``       GDN's gammas before rounding; ``beta_log``: log of its betas
==============  ==========================================================================================

Roundings pass gradients straight through; clipping stops them (as in LSQ, Esser et al. 2020). A stage
runs in float where `Twin.set_rounding` turned rounding off; with all of it off, the twin is the float codec.

`exact` adds the roundings that are far too fine to matter for calibration (16-bit values inside GDN,
multipliers of 16 bits). An exact twin in float64 computes the integer codec's integers, all of them.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs import FloatCodec
from ..codecs.bottleneck import gaussian_likelihood
from ..codecs.layers import lower_bound
from ..errors import CalibrationError
from ..integer import (
    Z_FRACTION_BITS,
    Compensate,
    DivisiveNormalization,
    IntegerCodec,
    IntegerNetwork,
    Requantize,
    Stage,
)
from ..integer.arithmetic import (
    ERROR_BITS,
    GDN_SHIFT_LIMIT,
    ROOT_SHIFT,
    SQUARE_SHIFT,
    V_LIMIT,
    Multiplier,
    gdn,
)
from ..integer.fast import compensate as compensate_fast
from ..integer.stages import X_HI, X_LO
from ..latents import FIXED_HI, FIXED_LO
from .config import PARTS, is_mixing
from .convert import Unrounded
from .formats import Levels, uniform

#: how far from its level a weight may be when gradients begin
ROOM = 0.25


def round_ste(x: Tensor) -> Tensor:
    """``floor(x + 1/2)`` whose gradient is one."""
    return x + (torch.floor(x + 0.5) - x).detach()


def _channels(t: Tensor) -> Tensor:
    return t.reshape(1, -1, 1, 1)


def _snap(factor: Tensor) -> Tensor:
    """Factors as the 16-bit multipliers represent them."""
    return Multiplier.from_float(factor.detach()).as_float().to(factor)


class TwinStage(nn.Module):
    """One stage; see the module's text. ``levels``: what its weights may be."""

    v: Tensor
    q0: Tensor
    bias0: Tensor
    factor0: Tensor
    negative0: Tensor
    widen0: Tensor
    gamma0: Tensor
    beta0: Tensor
    bias_unit: Tensor
    weights_rounded: Tensor
    values: Tensor
    middles: Tensor
    outputs_rounded: Tensor

    def __init__(self, stage: Stage, unrounded: Unrounded, last_clip: bool) -> None:
        super().__init__()
        conv, e = stage.conv, stage.epilogue
        self.name, self.stage, self.last_clip = stage.name, stage, last_clip
        self.soft_end = False  #: leave pixels unrounded
        self.levels = uniform(conv.bits) if conv.levels is None else Levels(conv.levels, conv.bits)
        self.stride, self.transposed = conv.stride, conv.transposed
        self.padding = conv.weight.shape[2] // 2
        self.lo, self.hi = e.lo, e.hi
        self.compensated = self.compensating = isinstance(e, Compensate)
        self.lowest, self.highest = float(self.levels.low), float(self.levels.high)
        self.plain = self.levels.plain
        self.spacing = (self.highest - self.lowest) / (len(self.levels.values) - 1)
        values = self.levels.values.double()
        self.register_buffer("values", values)
        self.register_buffer("middles", (values[1:] + values[:-1]) / 2)
        # buffers and not attributes, so that switching them does not compile the twin again
        for flag in ("weights_rounded", "outputs_rounded"):
            self.register_buffer(flag, torch.tensor(True))
        self.register_buffer("v", unrounded.weight.clone())
        self.register_buffer("q0", conv.weight.double())
        self.register_buffer("bias0", conv.bias.double())
        self.register_buffer("factor0", e.factor.as_float())
        channels = conv.out_channels
        self.out_log, self.unit_log = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(channels))
        # where compensation went against the nearest level, gradients need some room before they go back
        start = torch.minimum(torch.maximum(unrounded.weight, self.q0 - ROOM), self.q0 + ROOM)
        if not self.plain:
            start = self.q0.clone()
        self.weight = nn.Parameter(((start - unrounded.weight) / self.spacing).float())
        self.gdn = isinstance(e, DivisiveNormalization)
        if isinstance(e, DivisiveNormalization):
            assert unrounded.gamma is not None
            self.inverse, self.gamma_top = e.inverse, 2**e.bits - 1
            self.register_buffer("widen0", e.widen.as_float())
            self.register_buffer("gamma0", unrounded.gamma.clone())
            self.register_buffer("beta0", e.beta.double())
            self.gamma = nn.Parameter(torch.zeros_like(unrounded.gamma, dtype=torch.float32))
            self.beta_log = nn.Parameter(torch.zeros(channels))
            self.register_buffer("bias_unit", 50 / self.widen0.clamp(min=1e-12))
        else:
            negative = e.negative if isinstance(e, Requantize) else None
            self.leaky = negative is not None
            if negative is not None:
                self.register_buffer("negative0", negative.as_float())
            self.register_buffer("bias_unit", 1 / self.factor0.clamp(min=1e-12))

    def scaled_weight(self, in_log: Tensor | None) -> Tensor:
        """The float weights under the present scales."""
        o, i = ((1, -1, 1, 1), (-1, 1, 1, 1)) if self.transposed else ((-1, 1, 1, 1), (1, -1, 1, 1))
        v = self.v * torch.exp(-self.unit_log).reshape(o)
        return v if in_log is None else v * torch.exp(in_log).reshape(i)

    def level_weight(self, in_log: Tensor | None) -> Tensor:
        """Weights as levels, with straight-through gradients inside their range."""
        moved = self.scaled_weight(in_log) + self.spacing * self.weight
        inside = moved.clamp(self.lowest, self.highest)
        if self.plain:
            return round_ste(inside)
        nearest = self.values[torch.bucketize(inside.detach().contiguous(), self.middles, right=True)]
        return inside + (nearest - inside).detach()

    def gammas(self) -> tuple[Tensor, Tensor]:
        """Gammas ``(C, C)`` and betas ``(C,)`` of GDN, rounded if the stage's weights are."""
        g = (self.gamma0 + self.gamma).clamp(0, self.gamma_top)
        beta = self.beta0 * torch.exp(self.beta_log)
        r = self.weights_rounded
        return torch.where(r, round_ste(g), g), torch.where(r, round_ste(beta).clamp(min=1), beta)

    def biases(self) -> Tensor:
        b = self.bias0 * torch.exp(-self.unit_log) + self.bias * self.bias_unit
        return torch.where(self.weights_rounded, round_ste(b), b)

    def factors(self) -> Tensor:
        gain = -self.out_log
        if not self.gdn:
            gain = gain + self.unit_log
        return self.factor0 * torch.exp(gain)

    def convolve(self, q: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if self.transposed:
            return F.conv_transpose2d(
                q, w, b, stride=self.stride, padding=self.padding, output_padding=self.stride - 1
            )
        return F.conv2d(q, w, b, stride=self.stride, padding=self.padding)

    def _finish(self, out: Tensor) -> Tensor:
        if self.last_clip:  # pixels are clipped and rounded by the float codec too
            return out.clamp(self.lo, self.hi) if self.soft_end else round_ste(out).clamp(self.lo, self.hi)
        rounded = round_ste(out).clamp(self.lo, self.hi)
        plain = out.clamp(min=0) if self.lo == 0 and not self.gdn else out
        return torch.where(self.outputs_rounded, rounded, plain)

    def forward(self, q: Tensor, in_log: Tensor | None, exact: bool = False) -> Tensor:
        """``q: (B, I, H, W)`` in units of the incoming scale -> ``(B, O, H', W')``."""
        w = torch.where(self.weights_rounded, self.level_weight(in_log), self.scaled_weight(in_log))
        acc = self.convolve(q, w, self.biases())
        factor = self.factors()
        if exact:
            acc, factor = torch.round(acc), _snap(factor)
        if self.compensated:
            return self._compensate(acc * _channels(factor))
        if not self.gdn:
            if self.leaky:
                negative = self.negative0 * torch.exp(self.unit_log - self.out_log)
                if exact:
                    negative = _snap(negative)
                return self._finish(torch.where(acc < 0, acc * _channels(negative), acc * _channels(factor)))
            return self._finish(acc * _channels(factor))
        gamma, beta = self.gammas()
        widen = self.widen0 * torch.exp(self.unit_log)
        if exact:
            e = self.stage.epilogue
            x = torch.floor(acc * _channels(_snap(widen)) + 0.5).clamp(X_LO, X_HI)
            v = torch.floor(x * x * 2.0**-SQUARE_SHIFT + 0.5).clamp(max=65535)
            norm = torch.round(F.conv2d(v, gamma[:, :, None, None])) + _channels(beta)
            return gdn(x, norm, self.inverse, Multiplier.from_float(factor.detach()), e.lo, e.hi)
        x = acc * _channels(widen)
        norm = F.conv2d(x * x * 2.0**-SQUARE_SHIFT, gamma[:, :, None, None], beta)
        scale = _channels(factor * 2.0**ROOT_SHIFT) if self.inverse else _channels(factor * 2.0**-ROOT_SHIFT)
        return self._finish(x * scale * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm)))

    def _compensate(self, v: Tensor) -> Tensor:
        """``v`` in the units that errors are passed on in -> activations; gradients pass straight through."""
        plain = v * 2.0**-ERROR_BITS
        if not self.compensating:
            return plain
        e = self.stage.epilogue
        assert isinstance(e, Compensate)
        with torch.no_grad():
            q = compensate_fast(torch.floor(v + 0.5).clamp(-V_LIMIT, V_LIMIT).float(), e)
        return plain + (q.to(plain) - plain).detach()

    def export(self, in_log: Tensor | None) -> Stage:
        """The stage with all corrections rounded into integers."""
        e = self.stage.epilogue
        gain = torch.exp(self.unit_log)
        moved = self.scaled_weight(in_log) + self.spacing * self.weight
        conv = dataclasses.replace(
            self.stage.conv,
            weight=self.levels.nearest(moved).to(torch.int16),
            bias=torch.floor(self.bias0 / gain + self.bias * self.bias_unit + 0.5).to(torch.int64),
        )
        factor = Multiplier.from_float(self.factors())
        if isinstance(e, Compensate):
            return dataclasses.replace(self.stage, conv=conv, epilogue=dataclasses.replace(e, factor=factor))
        if isinstance(e, Requantize):
            negative = None
            if e.negative is not None:
                negative = Multiplier.from_float(self.negative0 * gain * torch.exp(-self.out_log))
            return dataclasses.replace(
                self.stage, conv=conv, epilogue=dataclasses.replace(e, factor=factor, negative=negative)
            )
        gamma, beta = self.gammas()
        e = dataclasses.replace(
            e,
            widen=Multiplier.from_float(self.widen0 * gain),
            gamma=torch.round(gamma).to(torch.int16),
            beta=torch.round(beta).to(torch.int64),
            factor=factor,
        )
        if not e.inverse and int(e.factor.shift.max()) > GDN_SHIFT_LIMIT:
            raise CalibrationError(f"{self.name}: an activation scale ran away; lower the learning rate")
        return dataclasses.replace(self.stage, conv=conv, epilogue=e)


@dataclass(frozen=True)
class Costs:
    """Rate and distortion of a batch. Scalars with gradients."""

    bits_y: Tensor
    bits_z: Tensor
    mse: Tensor  #: of 8-bit pixels

    def cost(self, lambda_: float, pixels: int) -> Tensor:
        """``J = lambda * 255^2 * MSE + bpp`` (MSE of [0, 1] samples, hence no 255^2 here)."""
        return lambda_ * self.mse + (self.bits_y + self.bits_z) / pixels


class Twin(nn.Module):
    """``pixels: (B, 3, H, W)`` holding 0..255 -> `Costs`. Sides are multiples of the downsampling."""

    medians: Tensor
    latent_gain: Tensor
    hyper_rounded: Tensor

    def __init__(self, integer: IntegerCodec, unrounded: dict[str, Unrounded], codec: FloatCodec) -> None:
        super().__init__()
        self.integer = integer
        self.stages = nn.ModuleDict()
        self.order: dict[str, list[str]] = {}
        for part in PARTS:
            if part not in integer.networks:
                continue
            stages = integer.networks[part].stages
            self.order[part] = [s.name for s in stages]
            for i, s in enumerate(stages):
                last = part == "g_s" and i == len(stages) - 1
                self.stages[s.name.replace(".", "_")] = TwinStage(s, unrounded[s.name], last)
        # in a tuple, so that it stays float32 whatever the twin is converted to
        self._density = (copy.deepcopy(codec.entropy_bottleneck).requires_grad_(False),)
        self.hyper_log = nn.Parameter(torch.zeros(integer.M)) if integer.has_hyperprior else None
        self.register_buffer("hyper_rounded", torch.tensor(True))
        self.unit = 2.0**integer.fraction_bits
        self.register_buffer("latent_gain", torch.exp2(integer.latent_shift.double()).reshape(1, -1, 1, 1))
        self.register_buffer("medians", integer.medians.double().reshape(1, -1, 1, 1))
        self.float().requires_grad_(False)

    def stage(self, name: str) -> TwinStage:
        found = self.stages[name.replace(".", "_")]
        assert isinstance(found, TwinStage)
        return found

    def names(self) -> list[str]:
        """Stages in network order."""
        return [name for part in self.order.values() for name in part]

    def in_log(self, name: str) -> Tensor | None:
        """Log scale correction of what a stage takes in."""
        part = name.split(".")[0]
        i = self.order[part].index(name)
        if i:
            return self.stage(self.order[part][i - 1]).out_log
        return self.hyper_log if part == "h_a" else None

    def ends(self) -> list[str]:
        """Stages whose output scale is not to be searched: it is part of the contract (latents, parameters,
        pixels), or a mixing was made for it.
        """
        before = [a for n in self.order.values() for a, b in itertools.pairwise(n) if is_mixing(b)]
        return [names[-1] for names in self.order.values()] + before

    def run(self, part: str, q: Tensor, exact: bool = False, first: int = 0) -> Tensor:
        """A whole network, or its stages from ``first`` on."""
        if first == 0:
            q = self.entering(part, q)
        for name in self.order[part][first:]:
            q = self.stage(name)(q, self.in_log(name), exact)
        return q

    def entering(self, part: str, q: Tensor) -> Tensor:
        """What the first stage of a network takes: for g_s, y_hat scaled up by channel."""
        if part != "g_s":
            return q
        return (q * self.latent_gain).clamp(FIXED_LO, FIXED_HI)

    def hyper_input(self, y: Tensor, exact: bool = False) -> Tensor:
        e = self.integer.hyper_input
        assert e is not None and self.hyper_log is not None
        factor = e.factor.as_float().to(y) * torch.exp(-self.hyper_log)
        if exact:
            factor = _snap(factor.double()).to(y)
        v = (y if self.integer.has_means else y.abs()) * _channels(factor)
        return torch.where(self.hyper_rounded, round_ste(v).clamp(e.lo, e.hi), v)

    def run_until(self, part: str, q: Tensor, last: int) -> Tensor:
        """The first ``last`` stages of a network."""
        q = self.entering(part, q)
        for name in self.order[part][:last]:
            q = self.stage(name)(q, self.in_log(name))
        return q

    def hyper_symbols(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` in fixed point -> (z symbols, z_hat in fixed point)."""
        symbols = round_ste((z - self.medians) * 2.0**-Z_FRACTION_BITS)
        return symbols, symbols * 2.0**Z_FRACTION_BITS + self.medians

    def latents(self, y: Tensor, exact: bool = False, noise: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """``y`` in fixed point -> ``(y_hat in fixed point, bits of y, bits of z)``.

        ``noise``: the rate is that of latents with uniform noise instead of rounding, whose gradient is
        right on average (Balle et al. 2017); y_hat is truly rounded all the same.
        """

        def for_rate(symbols: Tensor, value: Tensor) -> Tensor:
            return value + torch.empty_like(value).uniform_(-0.5, 0.5) if noise else symbols

        if self.hyper_log is None:
            value = (y - self.medians) / self.unit
            symbols = round_ste(value)
            p = self._density[0].likelihood(for_rate(symbols, value) + self.medians / self.unit)
            return symbols * self.unit + self.medians, -torch.log2(p).sum(), torch.zeros(())
        z = self.run("h_a", self.hyper_input(y, exact), exact)
        symbols_z, z_hat = self.hyper_symbols(z)
        z_rate = for_rate(symbols_z, (z - self.medians) * 2.0**-Z_FRACTION_BITS)
        p = self._density[0].likelihood(z_rate + self.medians * 2.0**-Z_FRACTION_BITS)
        bits_z = -torch.log2(p).sum()
        out = self.run("h_s", z_hat, exact)
        scales, means = out.chunk(2, 1) if self.integer.has_means else (out, torch.zeros_like(out))
        value = (y - means) / self.unit
        symbols = round_ste(value)
        p = gaussian_likelihood(for_rate(symbols, value), lower_bound(scales / self.unit, 0.11))
        return symbols * self.unit + means, -torch.log2(p).sum(), bits_z

    def forward(self, pixels: Tensor, noise: bool = False) -> Costs:
        y_hat, bits_y, bits_z = self.latents(self.run("g_a", pixels), noise=noise)
        return Costs(bits_y, bits_z, torch.mean((self.run("g_s", y_hat) - pixels) ** 2))

    def set_rounding(self, names: list[str], weights: bool, outputs: bool) -> None:
        """Quantize these stages' weights and outputs, or let them be float."""
        for name in names:
            self.stage(name).weights_rounded.fill_(weights)
            self.stage(name).outputs_rounded.fill_(outputs)
            self.stage(name).compensating = outputs
            if name == self.order.get("h_a", [""])[0]:
                self.hyper_rounded.fill_(outputs)

    def leave_compensated(self) -> None:
        """Let what compensated stages put out be float: hardly different, much faster, and compilable."""
        for name in self.names():
            self.stage(name).compensating = False

    @torch.no_grad()
    def export(self) -> IntegerCodec:
        """The integer codec of the present corrections, checked. Raises `BadModel`."""
        hyper = self.integer.hyper_input
        double = self.double()
        networks = {
            part: IntegerNetwork(tuple(double.stage(n).export(double.in_log(n)) for n in names))
            for part, names in self.order.items()
        }
        if hyper is not None and self.hyper_log is not None:
            factor = Multiplier.from_float(hyper.factor.as_float() * torch.exp(-self.hyper_log))
            hyper = dataclasses.replace(hyper, factor=factor)
        integer = dataclasses.replace(self.integer, networks=networks, hyper_input=hyper)
        self.float()
        integer.check()
        return integer
