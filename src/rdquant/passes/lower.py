"""A float network and what was observed of it, turned into an integer one.

Scales exist only here. What leaves is integers: weights, biases, multipliers, ranges, tables. The scales of
a layer's input channels are multiplied into its weights, which then get one scale ``s_w[c]`` per output
channel: an accumulator of channel c counts units of ``s_w[c]``, its bias is stored in them, and the factor to
the next activation of scale ``s_o[c]`` is ``s_w[c] / s_o[c]``.

Nodes are lowered on demand, from the output backwards. Who reads an edge decides its width: products
(convolutions, attention) take few bits, tables are looked up with `TABLE_BITS`, everything else (sums, gates,
normalizations) takes 16. Where several widths are read of an edge, they are made from the 16. Nonlinearities
go into the requantization behind a convolution where nothing else reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import BadModel, CalibrationError
from ..graph import Graph, Node, Operation, Port
from ..graph.arithmetic import ERROR_BITS, FEEDBACK_BITS, Multiplier
from ..graph.operations import (
    Compensate,
    Concatenate,
    Convolution,
    DivisiveNormalization,
    Gain,
    LayerNorm,
    Pointwise,
    Product,
    Requantize,
    Shuffle,
    Slice,
    Sum,
    Unshuffle,
    WindowAttention,
)
from ..graph.operations.pointwise import PIECEWISE_LINEAR
from ..latents import FIXED_HI, FIXED_LO
from . import number_forms
from .calibration import Calibration
from .config import OUTSIDE_PRIOR, WIDE_BITS, QuantizeConfig
from .latent_range import HEADROOM, latent_shift
from .mixed import Mixing, is_mixing
from .ranges import MIXED_HEADROOM, ActivationFormat, activation_format, mixed_format, tied

#: widths in which an edge can be wanted
NARROW, WIDE, INDEX = "narrow", "wide", "index"
#: operations whose inputs have few bits
PRODUCTS = (Convolution, WindowAttention)
#: and those that only hand integers on
ARRANGEMENTS = (Concatenate, Slice, Shuffle, Unshuffle)


@dataclass(frozen=True)
class Value:
    """An edge in integers: the node that gives it, and what its integers stand for."""

    name: str
    format: ActivationFormat


@dataclass
class Lowering:
    """One network on its way into integers; `run` gives the graph."""

    network: str
    graph: Graph
    inputs: Mapping[str, ActivationFormat]
    end: ActivationFormat | None
    """Of the output, where the contract says it; None: what its readers in other networks take."""
    seen: Calibration
    config: QuantizeConfig
    stretch: Mapping[str, Any]
    wide_end: bool = False
    unrounded: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    values: dict[tuple[str, str], Value] = field(default_factory=dict)
    units: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> tuple[Graph, ActivationFormat]:
        self.ends = self._ends()
        self.wanted = self.demands()
        self.ties = self._ties()
        value = self.value(self.graph.output, WIDE if self.wide_end else NARROW)
        ports = {n: Port(len(f.scale), *f.reach()) for n, f in self.inputs.items()}
        return Graph(ports, tuple(self.nodes), value.name), value.format

    # who wants what

    def _ends(self) -> dict[str, ActivationFormat]:
        """The edges whose format the contract says: the output, and what is only arranged into it."""
        if self.end is None:
            return {}
        channels, found = self.graph.channels(), {self.graph.output: self.end}
        for node in reversed(self.graph.nodes):
            if node.name in found and isinstance(node.op, ARRANGEMENTS):
                for edge in node.inputs:
                    if len(self.graph.readers(edge)) == 1:  # contracts have one scale for all channels
                        scale = float(self.end.scale[0])
                        found[edge] = ActivationFormat.uniform(
                            scale, self.end.lo, self.end.hi, channels[edge]
                        )
        return found

    def demands(self) -> dict[str, set[str]]:
        """The widths in which each edge is read."""
        found: dict[str, set[str]] = {name: set() for name in (*self.graph.inputs, *self.graph.names())}
        found[self.graph.output].add(WIDE if self.wide_end else NARROW)
        for node in reversed(self.graph.nodes):
            op = node.op
            linear = isinstance(op, Pointwise) and op.function in PIECEWISE_LINEAR
            for edge in node.inputs:
                if isinstance(op, ARRANGEMENTS):
                    found[edge] |= found[node.name]
                elif isinstance(op, PRODUCTS):
                    found[edge].add(NARROW)
                elif isinstance(op, Pointwise) and not linear:
                    found[edge].add(INDEX)
                elif not (linear or isinstance(op, DivisiveNormalization)) or self._alone(node) is None:
                    found[edge].add(WIDE)
        return found

    def _ties(self) -> dict[str, int]:
        """How many neighbouring channels of each edge must have one scale; 0: all."""
        found = dict.fromkeys(self.wanted, 1)

        def tie(edge: str, count: int) -> None:
            old = found[edge]
            found[edge] = 0 if 0 in (old, count) else max(old, count)

        for node in reversed(self.graph.nodes):
            op, own = node.op, found[node.name]
            for edge in node.inputs:
                if isinstance(op, LayerNorm | WindowAttention):
                    tie(edge, 0)
                elif isinstance(op, Shuffle):
                    tie(edge, own * op.factor**2)
                elif isinstance(op, ARRANGEMENTS) and own != 1:
                    tie(edge, 0)
        return found

    def _alone(self, node: Node) -> Node | None:
        """The convolution that ``node`` reads, if nothing else does."""
        (edge,) = node.inputs
        if edge in self.graph.inputs or len(self.graph.readers(edge)) != 1 or edge == self.graph.output:
            return None
        source = self.graph[edge]
        return source if isinstance(source.op, Convolution) else None

    # formats

    def _format(self, edge: str, width: str) -> ActivationFormat:
        """What an edge's integers are to stand for."""
        if edge in self.ends:
            return self.ends[edge]
        seen, tie = self.seen.tensors[edge], self.ties[edge]
        if width == INDEX:
            return number_forms.index_format(seen)
        if width == WIDE:
            return tied(number_forms.wide_format(seen), tie)
        c, stretch, rule = self.config, self.stretch.get(edge, 1.0), self.config.activation_range
        bits = c.activation_bits_of(edge, self.network)
        try:
            if is_mixing(edge):
                found = mixed_format(seen, bits, c.mixing == "compensated", c.doubled > 0)
            else:
                if bits >= WIDE_BITS:  # to spare: nothing is clipped
                    rule, stretch = "minmax", stretch * MIXED_HEADROOM
                rest = c.granularity if tie else "tensor", c.channel_exponent, c.clip_cost, c.percentile
                found = activation_format(seen, bits, rule, *rest)
        except CalibrationError as error:
            raise CalibrationError(f"{edge}: {error}") from None
        return tied(dataclasses.replace(found, scale=found.scale * stretch), tie)

    # lowering

    def add(self, name: str, op: Operation, *inputs: str) -> str:
        self.nodes.append(Node(name, op, inputs))
        return name

    def value(self, edge: str, width: str) -> Value:
        """The edge in a width, made if it is not there yet."""
        key = (edge, width)
        if key not in self.values:
            if edge in self.ends and width != INDEX:
                key = (edge, NARROW)  # the contract's format serves all
            if key not in self.values:
                self.values[key] = self._make(edge, width)
            self.values[(edge, width)] = self.values[key]
        return self.values[(edge, width)]

    def _make(self, edge: str, width: str) -> Value:
        if edge in self.graph.inputs:
            return self._input(edge, width)
        node = self.graph[edge]
        if isinstance(node.op, ARRANGEMENTS):
            ends_here = edge in self.ends and not all(e in self.ends for e in node.inputs)
            # what others read in other widths is cut first and narrowed then, to a range of its own
            shared = width == INDEX and any(len(self.wanted[e]) > 1 for e in node.inputs)
            if ends_here or shared:
                return self._narrowed(edge, self._arranged(node, WIDE), width)
            return self._arranged(node, width)
        if width != WIDE and edge not in self.ends and len(self.wanted[edge]) > 1:
            return self._narrowed(edge, self.value(edge, WIDE), width)
        handlers: dict[type[Operation], Callable[[Node, str], Value]] = {
            Convolution: self._convolution,
            DivisiveNormalization: self._gdn,
            Pointwise: self._pointwise,
            Sum: self._sum,
            Product: self._product,
            LayerNorm: self._layer_norm,
            WindowAttention: self._attention,
            Gain: self._gain,
        }
        if type(node.op) not in handlers:
            raise BadModel(f"{edge}: no integer form of {type(node.op).__name__}")
        return handlers[type(node.op)](node, width)

    def _narrowed(self, edge: str, wide: Value, width: str, name: str | None = None) -> Value:
        out = self._format(edge, width)
        factor = Multiplier.saturating(wide.format.scale / out.scale)
        op = Requantize(factor, None, out.lo, out.hi)
        return Value(self.add(name or f"{edge}.{width}", op, wide.name), out)

    def _input(self, edge: str, width: str) -> Value:
        found = Value(edge, self.inputs[edge])
        if edge == "y" and width == NARROW:  # the latent itself has 16 bits
            return self._narrowed(edge, found, width, "hyper_input")
        if width == INDEX:
            return self._narrowed(edge, found, width)
        if edge == "y_hat" and self.network == "synthesis" and width == NARROW:
            read = self.graph.readers(edge)
            shift = latent_shift([n.op for n in read], self.seen, [n.name for n in read])
            if bool(shift.any()):
                scale = found.format.scale * 2.0 ** -shift.double()
                factor = Multiplier.from_float(torch.exp2(shift.double()))
                name = self.add("latent_shift", Requantize(factor, None, FIXED_LO, FIXED_HI), edge)
                return Value(name, ActivationFormat(scale, FIXED_LO, FIXED_HI))
        return found

    def _arranged(self, node: Node, width: str) -> Value:
        values = [self.value(edge, width) for edge in node.inputs]
        name = f"{node.name}.{width}" if len(self.wanted[node.name]) > 1 and width != WIDE else node.name
        self.add(name, node.op, *(v.name for v in values))
        formats = [v.format for v in values]
        if isinstance(node.op, Concatenate):
            found = ActivationFormat.joined(formats)
        elif isinstance(node.op, Slice):
            found = formats[0].of_channels(torch.arange(node.op.start, node.op.stop))
        else:
            square = node.op.factor**2  # type: ignore[attr-defined]
            channels = torch.arange(len(formats[0].scale))
            of = channels[::square] if isinstance(node.op, Shuffle) else channels.repeat_interleave(square)
            found = formats[0].of_channels(of)
        return Value(name, found)

    def _accumulate(self, node: Node) -> tuple[str, Tensor]:
        """The convolution without what follows: its name and the real value of a unit, by channel."""
        assert isinstance(node.op, Convolution)
        if node.name not in self.units:
            source = self.value(node.inputs[0], NARROW)
            mixing = self._mixing_of(node)
            if mixing is not None:
                out = self._format(node.name, NARROW) if mixing.doubled else None
                op, unit, kernel = number_forms.integer_mixing(mixing, source.format, out)
            else:
                wanted = self._sensitivity_pays(node)
                sensitivity = self.seen.sensitivities.get(node.name) if wanted else None
                op, unit, kernel = number_forms.integer_convolution(
                    node.op, source.format, self.seen.grams[node.name], sensitivity, self.config,
                    self.config.bits_of(node.name, self.network),
                    self.config.format_of(node.name, self.network), self.network not in OUTSIDE_PRIOR,
                    float(self.stretch.get(f"{node.name}.weight", 1.0)),
                )  # fmt: skip
            self.add(node.name, op, source.name)
            self.unrounded[node.name], self.units[node.name] = kernel, unit
        return node.name, self.units[node.name]

    def _mixing_of(self, node: Node) -> Mixing | None:
        return self.seen.mixings.get(node.inputs[0]) if is_mixing(node.name) else None

    def _sensitivity_pays(self, node: Node) -> bool:
        """Rounding of the other formats gains next to nothing from it where no GDN follows."""
        readers = self.graph.readers(node.name)
        behind = len(readers) == 1 and isinstance(readers[0].op, DivisiveNormalization)
        return behind or self.config.format_of(node.name, self.network) == "coded"

    def _source(self, node: Node) -> tuple[str, Tensor]:
        """What a nonlinearity works on: the accumulators before it if it alone reads them, else 16 bits."""
        if (alone := self._alone(node)) is not None:
            return self._accumulate(alone)
        value = self.value(node.inputs[0], WIDE)
        return value.name, value.format.scale

    def _convolution(self, node: Node, width: str) -> Value:
        acc, unit = self._accumulate(node)
        mixing, name = self._mixing_of(node), f"{node.name}.out"
        if mixing is not None and node.inputs[0] in self.graph.inputs:  # the latent, mixed exactly
            out, mixing = number_forms.wide_format(self.seen.tensors[node.name], HEADROOM), None
        else:
            out = self._format(node.name, width)
        if mixing is not None and mixing.sensitivity is not None:
            assert out.offset is not None
            factor = Multiplier.from_float(unit / out.scale * 2.0**ERROR_BITS)
            feedback = torch.round(mixing.feedback(out.scale) * 2.0**FEEDBACK_BITS)
            feedback = feedback.clamp(-(2**15), 2**15 - 1).to(torch.int16)
            rounding = Compensate(factor, out.lo, out.hi, out.offset.numpy(), feedback.numpy())
            return Value(self.add(name, rounding, acc), out)
        op = Requantize(Multiplier.saturating(unit / out.scale), None, out.lo, out.hi)
        return Value(self.add(name, op, acc), out)

    def _gdn(self, node: Node, width: str) -> Value:
        assert isinstance(node.op, DivisiveNormalization)
        acc, unit = self._source(node)
        mixing = self.seen.mixings.get(node.name)
        if mixing is not None:
            top = mixing.input_top
            out = ActivationFormat(mixing.input_scale, -top, top)
        else:
            out = self._format(node.name, width)
        layer = node.inputs[0]
        bits = self.config.bits_of(layer, self.network)
        op, gamma = number_forms.integer_gdn(node.op, unit, self.seen.tensors[layer], out, bits)
        self.unrounded[node.name] = gamma
        return Value(self.add(node.name, op, acc), out)

    def _gain(self, node: Node, width: str) -> Value:
        """16 bits at either end: levels differ in how much of the range they use."""
        assert isinstance(node.op, Gain)
        source = self.value(node.inputs[0], WIDE)
        out = self.ends.get(node.name) or tied(self._format(node.name, WIDE), self.ties[node.name])
        op = number_forms.integer_gain(node.op, source.format, out)
        return Value(self.add(node.name, op, source.name), out)

    def _pointwise(self, node: Node, width: str) -> Value:
        assert isinstance(node.op, Pointwise)
        if node.op.function in PIECEWISE_LINEAR:
            return self._rectified(node, width)
        index = self.value(node.inputs[0], INDEX)
        if node.name in self.ends:
            out = self._format(node.name, width)
            if bool((out.scale != out.scale[0]).any()):
                raise BadModel(f"{node.name}: an output with a scale for each channel cannot be a table's")
        else:
            self.ties[node.name] = 0  # a table is common to all channels
            out = self._format(node.name, WIDE if width == WIDE else NARROW)
        op = number_forms.integer_table(node.op, index.format, out)
        return Value(self.add(node.name, op, index.name), out)

    def _rectified(self, node: Node, width: str) -> Value:
        assert isinstance(node.op, Pointwise)
        out = self._format(node.name, width)
        name = node.name
        if node.inputs[0] == "y" and "y" in self.graph.inputs:
            source, unit, name = "y", self.inputs["y"].scale, "hyper_input"
        else:
            source, unit = self._source(node)
        factor, negative = Multiplier.saturating(unit / out.scale), None
        if node.op.function == "leaky_relu":
            slope = node.op.arguments[0] if node.op.arguments else 0.01
            negative = Multiplier.saturating(unit / out.scale * slope)
        lo = 0 if node.op.function == "relu" else out.lo
        out = dataclasses.replace(out, lo=lo)
        op = Requantize(factor, negative, lo, out.hi, absolute=node.op.function == "abs")
        return Value(self.add(name, op, source), out)

    def _sum(self, node: Node, width: str) -> Value:
        assert isinstance(node.op, Sum)
        values = [self.value(edge, WIDE) for edge in node.inputs]
        out = self._format(node.name, width)
        op = number_forms.integer_sum(node.op, [v.format for v in values], out)
        return Value(self.add(node.name, op, *(v.name for v in values)), out)

    def _product(self, node: Node, width: str) -> Value:
        a, b = (self.value(edge, WIDE) for edge in node.inputs)
        out = self._format(node.name, width)
        factor = Multiplier.from_float(a.format.scale * b.format.scale / out.scale)
        return Value(self.add(node.name, Product(factor, out.lo, out.hi), a.name, b.name), out)

    def _layer_norm(self, node: Node, width: str) -> Value:
        assert isinstance(node.op, LayerNorm)
        value = self.value(node.inputs[0], WIDE)
        out = number_forms.layer_norm_format(node.op, self._format(node.name, width))
        op = number_forms.integer_layer_norm(node.op, float(value.format.scale[0]), out)
        return Value(self.add(node.name, op, value.name), out)

    def _attention(self, node: Node, width: str) -> Value:
        assert isinstance(node.op, WindowAttention)
        value = self.value(node.inputs[0], NARROW)
        out = self._format(node.name, width)
        op = number_forms.integer_attention(node.op, value.format, out)
        return Value(self.add(node.name, op, value.name), out)
