"""A codec that codes pictures: networks as graphs, a prior, tables; in floats or in integers.

One class for both. What differs is the arithmetic of the latents (`rdquant.latents.UniformScalar` or
`FixedPointScalar`) and what the graphs hold. A float codec is the anchor that a quantized one is measured
against: it writes real files, but only for the machine that wrote them.

Number formats of an integer codec, from pixels to pixels:

=============  =========================================================================
pixels         unsigned 8 bits; the first layer of the analysis takes them as they are
activations    integers in [lo, hi], scale known only to whoever built the codec
y, means       16-bit fixed point with ``fraction_bits`` (8 unless the latent needs more range)
y symbols      ``(y - means + half) >> fraction_bits``
y_hat          ``(symbol << fraction_bits) + means``, clipped to 16 bits
z, medians     like y and means, with ``Z_FRACTION_BITS`` = 8
scales         16-bit fixed point like means, compared with integer thresholds -> table index
=============  =========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .engines import Engine, default_engine, run
from .engines.partial import run_part
from .engines.strips import in_strips
from .entropy import CdfTables
from .errors import BadModel
from .export.runtimes import Synthesis, runner
from .graph import Graph, Port
from .graph.kernels import looked_up
from .graph.operations import Convolution, Gain, WindowAttention
from .latents import FIXED_HI, FIXED_LO, FixedPointScalar, UniformScalar
from .lazy import extras, torch
from .priors import Part, Prior
from .threads import PARALLEL

if TYPE_CHECKING:
    from torch import Tensor

    from .engines.approximate import Approximate

Z_FRACTION_BITS = 8
#: so that a file of one pixel cannot ask for more than a large picture
MOST_DOWNSAMPLING = 1024


@dataclass(frozen=True, eq=False, repr=False)
class Codec:
    """Pictures are ``(B, 3, H, W)`` uint8 with sides multiples of `downsampling`.

    Whatever the arithmetic is, all that it takes and gives are numpy arrays; tensors are within the graphs of
    a float codec. ``networks``: "analysis" (pixels -> y), "synthesis" (y_hat -> pixels), and those of
    ``prior``. In a float codec pixels are in [0, 1] there.
    """

    architecture: str
    networks: Mapping[str, Graph]
    prior: Prior
    y_tables: CdfTables
    """By scale, or without a hyperprior by channel."""
    z_tables: CdfTables | None
    thresholds: np.ndarray | None
    """``(levels - 1,)``, rising: a scale above threshold k uses table k + 1 or later. int32, or float64."""
    medians: np.ndarray
    """Of the factorized latent (z; y without a hyperprior): its symbols start there. int32, or float32."""
    quantizer: UniformScalar | FixedPointScalar
    description: dict[str, Any] = field(default_factory=dict)
    """How it was made; shown by `inspect`, not part of the fingerprint."""
    known_as: Mapping[bytes, bytes] = field(default_factory=dict)
    """Of a model file of version 4: what version 5 would name it -> what it is named."""

    def __repr__(self) -> str:
        ops = [node.op for graph in self.networks.values() for node in graph.nodes]
        count = sum(math.prod(t.shape) for op in ops for t in vars(op).values() if hasattr(t, "shape"))
        bits = {op.bits for op in ops if isinstance(op, Convolution)} if self.integer else None
        what = f"weights of {min(bits)} to {max(bits)} bits" if bits else "float"
        return f"Codec({self.architecture}, {what}, {len(self.networks)} networks, {count:,} parameters)"

    @property
    def integer(self) -> bool:
        return isinstance(self.quantizer, FixedPointScalar)

    @property
    def fraction_bits(self) -> int:
        assert isinstance(self.quantizer, FixedPointScalar)
        return self.quantizer.fraction_bits

    @cached_property
    def M(self) -> int:
        """Channels of y."""
        analysis = self.networks["analysis"]
        return analysis.channels()[analysis.output]

    @cached_property
    def gains(self) -> dict[str, tuple[str, Gain]]:
        """By network, the node with its gains; empty for a model of one rate (`rdquant.quality`).

        Raises `BadModel` unless analysis and synthesis have one each, of as many levels.
        """
        found = [
            (name, node.name, node.op)
            for name, graph in self.networks.items()
            for node in graph.nodes
            if isinstance(node.op, Gain)
        ]
        names = [name for name, _, _ in found]
        if found and (sorted(names) != ["analysis", "synthesis"] or len({g.last for _, _, g in found}) > 1):
            raise BadModel(f"gains must be one in analysis and one in synthesis, as many levels; got {names}")
        return {name: (node, op) for name, node, op in found}

    @cached_property
    def stride(self) -> int:
        """Pixels of a side for one position of y."""
        analysis = self.networks["analysis"]
        return int(1 / analysis.resolutions()[analysis.output])

    @cached_property
    def z_stride(self) -> int:
        """Pixels of a side for one position of z; of y without a hyperprior."""
        if not self.prior.hyper:
            return self.stride
        h_a = self.networks["hyper_analysis"]
        return int(self.stride / h_a.resolutions()[h_a.output])

    @cached_property
    def downsampling(self) -> int:
        """Sides of pictures are padded to multiples of this: all tensors have whole positions and windows."""
        start = {"analysis": 1, "hyper_synthesis": self.z_stride}
        found = math.lcm(self.stride, self.z_stride)
        for name, graph in self.networks.items():
            at = graph.resolutions()
            for node in graph.nodes:
                if isinstance(node.op, WindowAttention):
                    side = node.op.window * start.get(name, self.stride) / at[node.inputs[0]]
                    found = math.lcm(found, side.numerator)
        return found

    @cached_property
    def z_quantizer(self) -> UniformScalar | FixedPointScalar:
        return FixedPointScalar(Z_FRACTION_BITS) if self.integer else UniformScalar()

    @cached_property
    def engine(self) -> Engine:
        return default_engine()

    def run(
        self, name: str, *inputs: np.ndarray, valid: bool = False, part: Part | None = None
    ) -> np.ndarray:
        """A network by name: `rdquant.priors.base.RunArrays`."""
        with PARALLEL:
            if self.integer and part is not None:
                return run_part(self.networks[name], inputs, part, partial(run, engine=self.engine))
            if self.integer:
                return run(self.networks[name], inputs, self.engine, valid)
            graph = self._unpadded[name] if valid else self.networks[name]
            with torch.no_grad():
                out = graph.real(*(torch.from_numpy(_real(t)) for t in inputs)).numpy()
            return out if part is None else part.pick(out)

    def _wide(self, values: np.ndarray) -> np.ndarray:
        """Integers that differences are taken of."""
        return values.astype(np.int32, copy=False) if self.integer else values

    @cached_property
    def _unpadded(self) -> dict[str, Graph]:
        return {name: graph.valid() for name, graph in self.networks.items()}

    # picture -> symbols

    def analysis(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels, of a float codec also floats in [0, 1] -> y ``(B, M, H/stride, W/stride)``."""
        if not self.integer and pixels.dtype == np.uint8:
            pixels = pixels.astype(np.float32) / np.float32(255)
        return self._wide(self.run("analysis", pixels))

    def hyper_analysis(self, y: np.ndarray) -> np.ndarray:
        """y -> z, before rounding."""
        return self._wide(self.run("hyper_analysis", y))

    def z_symbols(self, z: np.ndarray) -> np.ndarray:
        """int32."""
        return self.z_quantizer.quantize(z, self._medians())

    # symbols -> picture

    def z_hat(self, z_symbols: np.ndarray) -> np.ndarray:
        return self.z_quantizer.dequantize(z_symbols, self._medians())

    def begin(self, z_hat: np.ndarray | None) -> np.ndarray | None:
        """What all parts of the latent take of the hyper-latent; None without one."""
        return None if z_hat is None else self.prior.begin(self.run, z_hat)

    def blank(self, batch: int, height: int, width: int) -> np.ndarray:
        """y_hat before anything is decoded, of a latent of this size."""
        kind = np.int16 if self.integer else np.float32  # channels last in memory, as engines have it
        return np.zeros((batch, height, width, self.M), kind).transpose(0, 3, 1, 2)

    def conditions(
        self, features: np.ndarray | None, y_hat: np.ndarray, spacing: int | None = None
    ) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
        """Part after part of the latent, with table indexes and means of its symbols, ``(B, C, 1, n)`` each.

        ``features``: of `begin`; ``y_hat``: of `blank`: the caller puts a part's values there before it asks
        for the next. ``spacing``: see `table_indexes`.
        """
        if features is None:
            b, c, h, w = y_hat.shape
            shape = b, c, 1, h * w
            indexes = np.arange(c, dtype=np.int32).reshape(1, -1, 1, 1)
            yield (
                Part(slice(0, c)),
                np.tile(indexes, (b, 1, 1, h * w)),
                np.broadcast_to(self._medians(), shape),
            )
            return
        for part, scales, means in self.prior.walk(self.run, features, y_hat):
            means = np.zeros_like(scales) if means is None else means
            yield part, self.table_indexes(scales, spacing), means.astype(y_hat.dtype, copy=False)
            del scales, means  # the next part needs the room

    def table_indexes(self, scales: np.ndarray, spacing: int | None = None) -> np.ndarray:
        """The table of each of ``scales``, int32.

        ``spacing``: of a table's integers in units of y, for symbols that are not one step apart.
        """
        assert self.thresholds is not None
        if not self.integer:
            share = 1 if spacing is None else spacing / self.quantizer.unit
            return np.searchsorted(self.thresholds * share, scales.astype(np.float64)).astype(np.int32)
        if spacing not in self._tables_of_scales:
            wide = self.thresholds.astype(np.int64)
            if spacing is not None:
                wide = np.minimum((wide * spacing) >> self.fraction_bits, FIXED_HI)
            found = np.searchsorted(wide, np.arange(FIXED_LO, FIXED_HI + 1)).astype(np.int32)
            self._tables_of_scales[spacing] = found
        return looked_up(scales, self._tables_of_scales[spacing], FIXED_LO)

    @cached_property
    def _tables_of_scales(self) -> dict[int | None, np.ndarray]:
        """By spacing: the table of each scale of 16 bits."""
        return {}

    def synthesis(self, y_hat: np.ndarray, engine: Synthesis = "exact") -> np.ndarray:
        """y_hat -> uint8 pixels. ``engine``: of an integer codec, resolved (`rdquant.export.runtimes`)."""
        if not self.integer:
            real = self.run("synthesis", y_hat).clip(0, 1) * np.float32(255)
            return np.floor(real + np.float32(0.5)).astype(np.uint8)
        if engine == "exact":
            return self.run("synthesis", y_hat).astype(np.uint8, copy=False)
        with PARALLEL:
            if engine == "torch":
                return self._approximate.run(y_hat).astype(np.uint8)
            graph = self.networks["synthesis"]
            return in_strips(graph, (y_hat,), runner(graph, engine)).astype(np.uint8, copy=False)

    def relaxed_synthesis(self, y_hat: Tensor) -> Tensor:
        """Tensors: y_hat, float32 -> pixels in 0..255, float32, differentiable: nothing rounded."""
        if not self.integer:
            return self.networks["synthesis"].real(y_hat).clamp(0, 1) * 255
        return self._approximate.relaxed(y_hat)

    @cached_property
    def _approximate(self) -> Approximate:
        with extras():
            from .engines.approximate import Approximate

        return Approximate(self.networks["synthesis"])

    def _medians(self) -> np.ndarray:
        return self.medians.reshape(1, -1, 1, 1)

    # the contract

    def check(self) -> None:
        """Raise `BadModel` unless every bound of the integer contract holds."""
        expected = {"analysis", "synthesis", *self.prior.networks}
        if set(self.networks) != expected:
            raise BadModel(f"networks must be {sorted(expected)}, got {sorted(self.networks)}")
        if not 0 <= self.fraction_bits <= 12:
            raise BadModel(f"fraction_bits must be 0..12, got {self.fraction_bits}")
        ends = {name: graph.check() for name, graph in self.networks.items()}
        self._check_ends(ends)
        self._check_sides()
        _ = self.gains
        self.y_tables.validate()
        factorized = len(self.z_tables) if self.z_tables is not None else self.M
        if self.medians.dtype != np.int32 or self.medians.shape != (factorized,):
            raise BadModel(f"medians must be int32 ({factorized},), got {tuple(self.medians.shape)}")
        if int(self.medians.min()) < FIXED_LO or int(self.medians.max()) > FIXED_HI:
            raise BadModel("medians must fit 16 bits")
        if not self.prior.hyper:
            if len(self.y_tables) != self.M:
                raise BadModel(f"expected {self.M} tables for y, got {len(self.y_tables)}")
            return
        if self.z_tables is None or ends["hyper_analysis"].channels != len(self.z_tables):
            raise BadModel("z must have a table for each channel that hyper_analysis gives")
        self.z_tables.validate()
        t = self.thresholds
        if t is None or t.dtype != np.int32 or t.shape != (len(self.y_tables) - 1,):
            raise BadModel("thresholds must be int32, one fewer than the tables of y")
        if (t[1:] <= t[:-1]).any():
            raise BadModel("thresholds must rise strictly")

    def _check_ends(self, ends: Mapping[str, Port]) -> None:
        """Raise `BadModel` unless the networks fit each other."""
        latent = Port(self.M, FIXED_LO, FIXED_HI)
        if self.networks["analysis"].inputs != {"x": Port(3, 0, 255)}:
            raise BadModel("the analysis must take 3 channels of 0..255")
        if ends["synthesis"] != Port(3, 0, 255):
            raise BadModel(f"the synthesis must give 3 channels of 0..255, got {ends['synthesis']}")
        if tuple(self.networks["synthesis"].inputs.values()) != (latent,):
            raise BadModel(f"the synthesis must take {self.M} channels of 16 bits")
        given = {"y": latent, "y_hat": latent}
        if self.z_tables is not None:
            given["z"] = Port(len(self.z_tables), FIXED_LO, FIXED_HI)
        for name, sources in self.prior.networks.items():
            ports = tuple(self.networks[name].inputs.values())
            if len(ports) != len(sources):
                raise BadModel(f"{name} must take {len(sources)} inputs, got {len(ports)}")
            for port, source in zip(ports, sources, strict=True):
                found = given.get(source, ends.get(source))
                assert found is not None
                own = self.prior.seen(name, self.M) if source == "y_hat" else found.channels
                if port.channels != own or port.lo > found.lo or port.hi < found.hi:
                    raise BadModel(f"{name} takes {port} of {source}, which gives {found}")
        outputs = self.prior.outputs(self.M)
        for name, channels in outputs.items():
            wanted = channels * (2 if getattr(self.prior, "means", False) else 1)
            if ends[name].channels != wanted or ends[name].lo < FIXED_LO or ends[name].hi > FIXED_HI:
                raise BadModel(f"{name} must give {wanted} channels of 16 bits, got {ends[name]}")
        for name in set(self.networks) - {"analysis", "synthesis", "hyper_analysis"}:
            self._check_entropy_path(name)
        for name in (*self.prior.pointwise, *self.prior.masked):
            self._check_reach(name, name in self.prior.masked)

    def _check_reach(self, name: str, masked: bool) -> None:
        """Raise `BadModel` for a network that sees more of y_hat than its prior decodes before."""
        graph = self.networks[name]
        if set(graph.resolutions().values()) != {1} or graph.halo() != (2 if masked else 0):
            what = "a masked 5x5 convolution and " if masked else ""
            raise BadModel(f"{name} must be made of {what}1x1 convolutions and pointwise functions")
        if masked:
            wide: list[Any] = [node for node in graph.nodes if getattr(node.op, "kernel_size", 1) > 1]
            shapes = [(n.op.kernel_size, n.op.padding, n.op.transposed) for n in wide]
            if shapes != [(5, 2, False)] or graph.passes_by(wide[0].name):
                raise BadModel(f"{name} must have one 5x5 convolution, which all goes through")
            if (w := wide[0].op.weight).reshape(*w.shape[:2], -1)[:, :, 12:].any():
                raise BadModel(f"{name} must have a convolution that is masked from its centre on")

    def _check_sides(self) -> None:
        """Raise `BadModel` unless resolutions fit each other and pictures of multiples of `downsampling`."""
        at = {"x": Fraction(1)}
        order = {"analysis": ("x",), **self.prior.networks, "synthesis": ("y_hat",)}
        for name, sources in order.items():
            graph, (start, *others) = self.networks[name], sorted({at[source] for source in sources})
            sides = {edge: start * scale for edge, scale in graph.resolutions().items()}
            at[name] = sides[graph.output]
            if name == "analysis":
                at["y"] = at["y_hat"] = at[name]
            elif name == "hyper_analysis":
                at["z"] = at[name]
            wanted = {"synthesis": Fraction(1), **dict.fromkeys(self.prior.outputs(self.M), at["y"])}
            stride = name not in ("analysis", "hyper_analysis") or at[name].numerator == 1
            if others or not stride or at[name] != wanted.get(name, at[name]):
                raise BadModel(f"{name} gives {at[name]} of the picture's sides, from {start} of them")
            for edge, side in sides.items():
                positions = side * self.downsampling
                if side > 1 or positions.denominator != 1:
                    raise BadModel(
                        f"{edge} has {positions} positions for {self.downsampling} pixels of a side"
                    )
        if self.downsampling > MOST_DOWNSAMPLING:
            raise BadModel(
                f"pictures are padded to multiples of {self.downsampling}, over {MOST_DOWNSAMPLING}"
            )
        self.prior.check(self.M, int(at["y"] * self.downsampling))

    def _check_entropy_path(self, name: str) -> None:
        ports = self.networks[name].ports()
        for node in self.networks[name].nodes:
            op = node.op
            if isinstance(op, Convolution) and op.bits <= 8 and op.levels is None:
                if ports[node.inputs[0]].hi - ports[node.inputs[0]].lo >= 2**8:
                    continue  # no product of bytes
                largest = int(np.abs(op.weight.astype(np.int32)).max())
                # int8 engines multiply in pairs: wider weights than 7 bits could saturate theirs
                if largest > 63:
                    raise BadModel(f"{node.name}.weight holds {largest}; the entropy path allows +-63")


def _real(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind == "f" else values.astype(np.float32)
