"""What a plan costs in bytes of the packed model file: tables, biases and scales included."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError
from ..files.bits import packed_size
from ..files.models import integer_file_bytes
from ..integer import IntegerCodec
from ..weights.config import UNIFORM_FROM, is_mixing

#: bytes that a tensor's name, type, shape and place take in a safetensors header, about
TENSOR_HEADER = 85


def _level_bytes(bits: int) -> int:
    """Of a codebook: int8 up to 5 bits, then int16 (`rdquant.weights.formats.codebook`), and its header."""
    return 2**bits * (1 if bits <= 5 else 2) + TENSOR_HEADER


@dataclass(frozen=True)
class LayerSizes:
    """``counts``: weights by layer; ``fixed``: bytes of all else; ``float_bytes``: the float32 model."""

    counts: Mapping[str, int]
    fixed: int
    float_bytes: int

    @classmethod
    def of(cls, integer: IntegerCodec, parameters: int) -> LayerSizes:
        """Taken from a quantized codec, whose file is written in memory. ``parameters``: of the parent."""
        stages = [s for network in integer.networks.values() for s in network.stages]
        stages = [s for s in stages if not is_mixing(s.name)]
        counts = {s.name: s.conv.weight.numel() for s in stages}
        packed = sum(packed_size(counts[s.name], s.conv.bits) for s in stages)
        packed += sum(_level_bytes(s.conv.bits) for s in stages if s.conv.levels is not None)
        return cls(counts, integer_file_bytes(integer) - packed, 4 * parameters)

    def bytes(self, bits: Mapping[str, int]) -> int:
        """Predicted file size; biases and alignment make it uncertain by some hundred bytes."""
        return self.fixed + sum(
            packed_size(c, bits[n]) + (_level_bytes(bits[n]) if bits[n] < UNIFORM_FROM else 0)
            for n, c in self.counts.items()
        )

    def target(self, text: str) -> int:
        """Bytes that ``25%`` (of the float32 parameters), ``5x`` (smaller), ``4.5bits`` or ``800000`` mean.

        Raises `UsageError`.
        """
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|x|bits?|B|kB|)\s*", text)
        if not match or float(match[1]) <= 0:
            raise UsageError(f"a target size is like 25%, 5x, 4.5bits, 800kB or 800000, got {text!r}")
        value, unit = float(match[1]), match[2]
        if unit == "%":
            return int(self.float_bytes * value / 100)
        if unit == "x":
            return int(self.float_bytes / value)
        if unit.startswith("bit"):
            return int(self.fixed + sum(self.counts.values()) * value / 8)
        return int(value * (1000 if unit == "kB" else 1))
