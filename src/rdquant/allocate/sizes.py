"""What a plan costs in bytes of the model file: tables, biases and scales included."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..codec import Codec
from ..files.integer_models import file_bytes, weight_bytes
from ..graph.operations import Convolution
from ..passes.mixed import is_mixing
from ..quality import bytes_in


@dataclass(frozen=True)
class LayerSizes:
    """``counts``: weights by layer; ``weights``: bytes that they take in a file, by layer and bits;
    ``fixed``: bytes of all else; ``float_bytes``: the float32 model.
    """

    counts: Mapping[str, int]
    weights: Mapping[str, Mapping[int, int]]
    fixed: int
    float_bytes: int

    @classmethod
    def of(cls, codecs: Mapping[int, Codec], parameters: int) -> LayerSizes:
        """Measured on a quantized codec at each width. ``parameters``: of the float parent."""
        nodes = [n for graph in next(iter(codecs.values())).networks.values() for n in graph.nodes]
        layers = [n for n in nodes if isinstance(n.op, Convolution) and not is_mixing(n.name)]
        counts = {n.name: n.op.weight.size for n in layers if isinstance(n.op, Convolution)}
        measured = {bits: weight_bytes(codec) for bits, codec in codecs.items()}
        weights = {n: {bits: sizes[n] for bits, sizes in measured.items()} for n in counts}
        # the largest: tables of coded weights grow with the widths
        fixed = max(
            file_bytes(codec) - sum(measured[bits][n] for n in counts) for bits, codec in codecs.items()
        )
        return cls(counts, weights, fixed, 4 * parameters)

    def bytes(self, bits: Mapping[str, int]) -> int:
        """Predicted file size. Coded weights share tables, whose mix of layers is a plan's own: hence some
        tenths of a percent of uncertainty.
        """
        return self.fixed + sum(row[bits[n]] for n, row in self.weights.items())

    def coded_bits(self, size: int) -> float:
        """Bits that a weight takes on average in a file of ``size`` bytes."""
        return 8 * (size - self.fixed) / sum(self.counts.values())

    def target(self, text: str) -> int:
        """Bytes that ``25%`` (of the float32 parameters), ``5x`` (smaller), ``4.5bits``, ``800kB`` or
        ``800000`` mean. Raises `UsageError`.
        """
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|x|bits?)\s*", text)
        if not match or float(match[1]) <= 0:
            return bytes_in(text, "25%, 5x, 4.5bits, 800kB or 800000")
        value, unit = float(match[1]), match[2]
        if unit == "%":
            return int(self.float_bytes * value / 100)
        if unit == "x":
            return int(self.float_bytes / value)
        return int(self.fixed + sum(self.counts.values()) * value / 8)
