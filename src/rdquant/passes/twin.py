"""The differentiable twin of an integer codec: what the RD calibration moves.

The twin is the integer codec's own graphs, with tensors put in that have gradients. It computes in the
integer codec's units. Every parameter is a correction that is zero at the start, so a fresh twin is the codec
it was made from (biases to float32 accuracy), and `export` writes the corrections back into integers. What
can move:

==============  ==========================================================================================
``out_log``     log of each channel's activation scale, of edges that convolutions alone read; their weights
                follow
``weight``      the unrounded weights, in units of the levels' mean distance (learned rounding)
``bias``        biases, in units that make a step of 1 a visible one
``gamma``       GDN's gammas before rounding; ``beta_log``: log of its betas
==============  ==========================================================================================

Roundings pass gradients straight through; clipping stops them (as in LSQ, Esser et al. 2020).

A stage is a convolution and the operations after it, up to the next one: the unit in which rounding is
switched on and off (`Twin.set_rounding`), and parameters move. With all of it off, the twin is the float
codec.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..codec import Z_FRACTION_BITS, Codec
from ..codecs.bottleneck import EntropyBottleneck, gaussian_likelihood
from ..codecs.bottleneck import density as as_density
from ..codecs.layers import lower_bound
from ..codecs.protocol import Density
from ..errors import CalibrationError
from ..graph import Graph, Node, Operation, Rounding
from ..graph.arithmetic import GDN_SHIFT_LIMIT, Multiplier, RealFactor
from ..graph.operations import Compensate, Convolution, DivisiveNormalization, Requantize, round_ste
from ..graph.operations.base import tensor
from .ends import origin
from .flow import networks_in_order, settled
from .mixed import is_mixing
from .moving import Norm, Stage, Weights, stages_of

#: what a unit of ``bias`` is, of 16-bit values in front of GDN
GDN_BIAS = 50


@dataclass(frozen=True)
class Costs:
    """Rate and distortion of a batch. Scalars with gradients."""

    bits_y: Tensor
    bits_z: Tensor
    mse: Tensor  #: of 8-bit pixels

    def cost(self, lambda_: float, pixels: int) -> Tensor:
        """``J = lambda * 255^2 * MSE + bpp`` (MSE of [0, 1] samples, hence no 255^2 here)."""
        return lambda_ * self.mse + (self.bits_y + self.bits_z) / pixels


def _key(name: str) -> str:
    """A node's name as PyTorch's modules allow it."""
    return name.replace(".", "_")


class Twin(nn.Module):
    """``pixels: (B, 3, H, W)`` holding 0..255 -> `Costs`. Sides are multiples of the downsampling."""

    medians: Tensor

    def __init__(self, integer: Codec, unrounded: dict[str, Tensor], density: Density) -> None:
        """``density``: of the factorized latent, for rates with gradients."""
        super().__init__()
        self.integer = integer
        self.weights, self.norms = nn.ModuleDict(), nn.ModuleDict()
        self.logs = nn.ParameterDict()
        self.stages: dict[str, Stage] = {}
        for network in networks_in_order(integer):
            graph = integer.networks[network]
            self.stages.update({s.name: s for s in stages_of(network, graph)})
            for node in graph.nodes:
                if isinstance(node.op, Convolution):
                    unit = _bias_unit(graph, node)
                    self.weights[_key(node.name)] = Weights(node.op, unrounded[node.name], unit)
                elif isinstance(node.op, DivisiveNormalization):
                    self.norms[_key(node.name)] = Norm(node.op, unrounded[node.name])
                if _scale_moves(integer, network, graph, node):
                    self.logs[_key(node.name)] = nn.Parameter(torch.zeros(graph.channels()[node.name]))
        #: by stage, whether its weights and what it puts out are rounded
        self.weights_rounded = dict.fromkeys(self.stages, True)
        self.outputs_rounded = dict.fromkeys(self.stages, True)
        self.compensating = True  #: whether compensated rounding is done where outputs are rounded
        self.soft_end = False  #: leave pixels unrounded
        self.stage_of = {n: s.name for s in self.stages.values() for n in s.nodes}
        #: by node: what the tensors that move are put into
        self.ops = {n.name: n.op for graph in integer.networks.values() for n in graph.nodes}
        # in a tuple, so that it stays float32 whatever the twin is converted to
        own = as_density(density)
        if not isinstance(own, EntropyBottleneck):
            raise CalibrationError(
                f"gradients of the rate need an EntropyBottleneck, got a {type(own).__name__}"
            )
        self._density = (copy.deepcopy(own).requires_grad_(False),)
        synthesis = integer.networks["synthesis"]
        self._pixels = origin(synthesis, synthesis.output)
        self.unit = 2.0**integer.fraction_bits
        self.register_buffer("medians", torch.from_numpy(integer.medians).double().reshape(1, -1, 1, 1))
        self.float().requires_grad_(False)

    # what there is

    def names(self) -> list[str]:
        """Stages in network order."""
        return list(self.stages)

    def of_network(self, network: str) -> list[str]:
        return [s.name for s in self.stages.values() if s.network == network]

    def layer(self, name: str) -> Weights:
        """What moves of a convolution."""
        found = self.weights[_key(name)]
        assert isinstance(found, Weights)
        return found

    def in_log(self, name: str) -> Tensor | None:
        """Log scale correction of what a convolution takes in."""
        (edge,) = self.integer.networks[self.stages[name].network][name].inputs
        return self.logs[_key(edge)] if _key(edge) in self.logs else None  # noqa: SIM401

    def scale_edges(self, stage: str) -> list[str]:
        """The edges of a stage whose scales can move."""
        return [n for n in self.stages[stage].nodes if _key(n) in self.logs]

    def log(self, edge: str) -> Tensor:
        return self.logs[_key(edge)]

    def with_stages_of(self, other: Callable[[str], Twin]) -> Twin:
        """A twin that has each stage from ``other(stage)``, a twin of the same codec at another width."""
        found = copy.copy(self)
        found._modules = dict(self._modules)
        found.weights, found.norms = nn.ModuleDict(), nn.ModuleDict()
        found.ops = dict(self.ops)
        found.weights_rounded, found.outputs_rounded = dict(self.weights_rounded), dict(self.outputs_rounded)
        for name in self.stages:
            found.adopt(name, other(name))
        return found

    def adopt(self, stage: str, other: Twin) -> None:
        """Put one stage of another twin in the place of the own."""
        for node in self.stages[stage].nodes:
            self.ops[node] = other.ops[node]
            for own, theirs in ((self.weights, other.weights), (self.norms, other.norms)):
                if _key(node) in theirs:
                    own[_key(node)] = theirs[_key(node)]

    def parameters_of(self, stage: str, attribute: str) -> list[nn.Parameter]:
        """Of one stage, those that the module's table calls ``attribute``."""
        nodes = self.stages[stage].nodes
        if attribute == "out_log":
            return [self.logs[_key(n)] for n in nodes if _key(n) in self.logs]
        own = self.weights if attribute in ("weight", "bias") else self.norms
        return [getattr(own[_key(n)], attribute) for n in nodes if _key(n) in own]

    # evaluation

    def op(self, node: Node) -> Operation:
        """The operation with the tensors that move put in."""
        key, op = _key(node.name), self.ops[node.name]
        stage = self.stage_of[node.name]
        if isinstance(op, Convolution):
            return self.layer(node.name).relaxed(self.in_log(node.name), self.weights_rounded[stage])
        if isinstance(op, DivisiveNormalization):
            op = self.norms[key].relaxed(self.weights_rounded[stage])  # type: ignore[operator]
        if key in self.logs:
            gain = torch.exp(-self.logs[key])
            op = _times(op, gain, RealFactor)
        return op

    def _rounding(self, node: Node) -> Rounding:
        if node.name == self._pixels:  # which the float codec clips and rounds, too
            return Rounding.CLIPPED if self.soft_end else Rounding.ROUNDED
        stage = self.stage_of[node.name]
        if isinstance(node.op, Compensate) and not self.compensating:
            return Rounding.FREE
        if self.outputs_rounded[stage]:
            return Rounding.ROUNDED
        # what wrong weights do is bounded by the ends of ranges, as in integers
        return Rounding.CLIPPED if self.weights_rounded[stage] else Rounding.FREE

    def operate(self, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.op(node).relaxed(*inputs, rounding=self._rounding(node))

    def run(self, name: str, *inputs: Tensor, valid: bool = False) -> Tensor:
        """A network by name, inputs in the integers' units; see `rdquant.priors.base.Run`."""
        graph = self.integer.networks[name]
        return (graph.valid() if valid else graph).evaluate(inputs, self.operate)

    def hyper_symbols(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` in fixed point -> (z symbols, z_hat in fixed point)."""
        symbols = round_ste((z - self.medians) * 2.0**-Z_FRACTION_BITS)
        return symbols, symbols * 2.0**Z_FRACTION_BITS + self.medians

    def quantize(self, y: Tensor, means: Tensor) -> Tensor:
        return round_ste((y - means) / self.unit) * self.unit + means

    def parameters_for(self, y: Tensor, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and means of y, in fixed point, contexts seeing what a decoder would have decoded."""
        return self.conditions(y, self.integer.prior.begin(self.run, z_hat))

    def conditions(self, y: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        prior = self.integer.prior
        y_hat = y
        if prior.has_contexts:
            with torch.no_grad():
                y_hat = settled(prior, self.run, features, y, self.quantize)
        scales, means = prior.all_parameters(self.run, features, y_hat)
        return scales, torch.zeros_like(scales) if means is None else means

    def latents(self, y: Tensor, noise: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """``y`` in fixed point -> ``(y_hat in fixed point, bits of y, bits of z)``.

        ``noise``: the rate is that of latents with uniform noise instead of rounding, whose gradient is
        right on average (Balle et al. 2017); y_hat is truly rounded all the same.
        """
        if not self.integer.prior.hyper:
            value = (y - self.medians) / self.unit
            symbols = round_ste(value)
            rate = _for_rate(symbols, value, noise) + self.medians / self.unit
            return symbols * self.unit + self.medians, self.factorized_bits(rate), torch.zeros(())
        return self.latents_around(y, self.run("hyper_analysis", y), noise)

    def latents_around(self, y: Tensor, z: Tensor, noise: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """`latents` where z, in fixed point, is known."""
        z_hat, bits_z = self.hyper(z, noise)
        scales, means = self.parameters_for(y, z_hat)
        return *self.coded(y, scales, means, noise), bits_z

    def hyper(self, z: Tensor, noise: bool = False) -> tuple[Tensor, Tensor]:
        """``z`` in fixed point -> (z_hat, its bits)."""
        symbols, z_hat = self.hyper_symbols(z)
        rate = _for_rate(symbols, (z - self.medians) * 2.0**-Z_FRACTION_BITS, noise)
        return z_hat, self.factorized_bits(rate + self.medians * 2.0**-Z_FRACTION_BITS)

    def factorized_bits(self, values: Tensor) -> Tensor:
        """Of the factorized latent, not in fixed point."""
        return -torch.log2(self._density[0].likelihood(values)).sum()

    def coded(self, y: Tensor, scales: Tensor, means: Tensor, noise: bool = False) -> tuple[Tensor, Tensor]:
        """y_hat and its bits."""
        value = (y - means) / self.unit
        symbols = round_ste(value)
        rate = _for_rate(symbols, value, noise)
        p = gaussian_likelihood(rate, lower_bound(scales / self.unit, 0.11))
        return symbols * self.unit + means, -torch.log2(p).sum()

    def forward(self, pixels: Tensor, noise: bool = False, share: Tensor | None = None) -> Costs:
        """``share: (B,)``: what a squared error of each picture counts, 1 by default."""
        y_hat, bits_y, bits_z = self.latents(self.run("analysis", pixels), noise=noise)
        errors = (self.run("synthesis", y_hat) - pixels) ** 2
        mse = torch.mean(errors) if share is None else torch.mean(errors.mean((1, 2, 3)) * share)
        return Costs(bits_y, bits_z, mse)

    # switches

    def set_rounding(self, names: list[str], weights: bool, outputs: bool) -> None:
        """Quantize these stages' weights and outputs, or let them be float."""
        for name in names:
            self.weights_rounded[name], self.outputs_rounded[name] = weights, outputs
        self.compensating = True

    def take_gains(self, codec: Codec) -> None:
        """Be at the quality of a codec that differs in nothing else."""
        self.ops.update(codec.gains.values())

    def leave_compensated(self) -> None:
        """Let what compensated stages put out be float: hardly different, and much faster."""
        self.compensating = False

    @torch.no_grad()
    def export(self) -> Codec:
        """The integer codec of the present corrections, checked. Raises `BadModel`."""
        self.double()
        networks = {}
        for name, graph in self.integer.networks.items():
            networks[name] = graph.replaced({n.name: self._exported(n) for n in graph.nodes})
        self.float()
        integer = dataclasses.replace(self.integer, networks=networks)
        integer.check()
        return integer

    def _exported(self, node: Node) -> Operation:
        key, op = _key(node.name), self.ops[node.name]
        if isinstance(op, Convolution):
            return self.layer(node.name).export(self.in_log(node.name))
        if isinstance(op, DivisiveNormalization):
            op = self.norms[key].export()  # type: ignore[operator]
        if key in self.logs:
            gain = torch.exp(-self.logs[key])
            op = _times(op, gain, Multiplier.from_float)
            if isinstance(op, DivisiveNormalization) and not op.inverse:
                assert op.factor is not None
                if int(op.factor.shift.max()) > GDN_SHIFT_LIMIT:
                    raise CalibrationError(
                        f"{node.name}: an activation scale ran away; lower the learning rate"
                    )
        return op


def _times(op: Any, gain: Tensor, make: Callable[[Tensor], Multiplier | RealFactor]) -> Any:
    """An operation with its factors, those of each channel, times ``gain: (C,)``."""
    found = {"factor": op.factor, "negative": getattr(op, "negative", None)}
    moved = {name: make(tensor(f.as_float(), gain) * gain) for name, f in found.items() if f is not None}
    return dataclasses.replace(op, **moved)


def _for_rate(symbols: Tensor, value: Tensor, noise: bool) -> Tensor:
    return value + torch.empty_like(value).uniform_(-0.5, 0.5) if noise else symbols


def _bias_unit(graph: Graph, node: Node) -> Tensor:
    """A visible step of each channel's accumulator: one activation, or `GDN_BIAS` inside GDN."""
    op = graph.readers(node.name)[0].op
    if isinstance(op, DivisiveNormalization):
        assert op.widen is not None
        return torch.from_numpy(GDN_BIAS / op.widen.as_float().clip(min=1e-12))
    assert isinstance(op, Requantize | Compensate)
    return torch.from_numpy(1 / op.factor.as_float().clip(min=1e-12))


def _scale_moves(integer: Codec, network: str, graph: Graph, node: Node) -> bool:
    """Whether an activation's scale can be searched: only convolutions read it, the contract does not say it,
    and no mixing was made for it.
    """
    if not isinstance(node.op, Requantize | DivisiveNormalization) or node.name == graph.output:
        return False
    if node.name == "latent_shift" or (isinstance(node.op, Requantize) and node.op.hi > 2**15 - 2):
        return False
    readers = graph.readers(node.name)
    return bool(readers) and all(isinstance(r.op, Convolution) and not is_mixing(r.name) for r in readers)
