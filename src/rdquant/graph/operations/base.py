"""What every operation of a graph is: one function with a float and an exact integer meaning.

=============  ==========================================================================================
``real``       its meaning on real numbers: what a captured float network computes
``exact``      its meaning on integers held in float64, the contract (`rdquant.graph.arithmetic`)
``relaxed``    the integer meaning in float32 with gradients, rounded or not (`Rounding`)
``check``      the bounds that make ``exact`` the same on every machine; gives the range that comes out
=============  ==========================================================================================

One class serves all: its tensors are float weights in a captured graph, integers in a quantized one, and
weights with gradients in the twin (`rdquant.passes.twin`), which are put in by `dataclasses.replace`. Fields
that only integers have are None before quantization. The fields are what a model file stores.

Integers are numpy arrays, and so is all that ``exact`` takes and gives; what is real is PyTorch's tensors,
which ``real`` and ``relaxed`` take and give. PyTorch is imported by these alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import BadModel
from ...lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

#: of an operation: an array of integers, or a tensor of real numbers
Values = Any


@dataclass(frozen=True)
class Port:
    """What flows along an edge: integers in [lo, hi] in each of ``channels``."""

    channels: int
    lo: int
    hi: int


class Rounding(Enum):
    """How much of the integer meaning ``relaxed`` has."""

    FREE = 0  #: neither rounded nor clipped: the float network in the integers' units
    CLIPPED = 1  #: clipped to the integers' range
    ROUNDED = 2  #: and rounded, gradients passing straight through (Bengio et al. 2013)


def round_ste(x: Tensor) -> Tensor:
    """``floor(x + 1/2)`` whose gradient is one."""
    return x + (torch.floor(x + 0.5) - x).detach()


def tensor(values: Values, like: Tensor) -> Tensor:
    """An array or a tensor as a tensor of the type and device of ``like``."""
    return torch.as_tensor(values).to(like)


def per_channel(values: Values, like: Tensor) -> Tensor:
    """``(C,)`` -> ``(1, C, 1, 1)`` of the type and device of ``like``."""
    return tensor(values, like).reshape(1, -1, 1, 1)


def finish(out: Tensor, lo: int, hi: int, rounding: Rounding) -> Tensor:
    """The end of ``relaxed``. ``lo`` of 0 is a rectifier, which stays where nothing else is clipped."""
    if rounding is Rounding.ROUNDED:
        return round_ste(out).clamp(lo, hi)
    if rounding is Rounding.CLIPPED:
        return torch.nn.functional.hardtanh(out, lo, hi)  # clamp, whose gradient takes four passes
    return out.clamp(min=0) if lo == 0 else out


class Operation:
    """Base of the closed set in `rdquant.graph.operations.OPERATIONS`; frozen dataclasses.

    What they take and give is ``(B, C, H, W)``. A side of the output has ``up / down`` times the input's
    positions.
    """

    kind: ClassVar[str]  #: in model files
    arity: ClassVar[int | None] = 1  #: how many inputs; None: any number
    integers: ClassVar[dict[str, type]] = {}  #: types of its integer arrays that are not int32

    @property
    def up(self) -> int:
        return 1

    @property
    def down(self) -> int:
        return 1

    @property
    def halo(self) -> int | None:
        """Input positions beyond its own that an output position depends on, on either side.

        None: it depends on how the picture is cut, so that the graph cannot be run in strips.
        """
        return 0

    def channels(self, *channels: int) -> int:
        """Channels that come out, by those that go in. Raises `BadModel` if they do not fit."""
        return channels[0]

    def real(self, *x: Tensor) -> Tensor:
        raise NotImplementedError

    def exact(self, *q: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def relaxed(self, *q: Tensor, rounding: Rounding = Rounding.ROUNDED) -> Tensor:
        raise NotImplementedError

    def check(self, name: str, *ports: Port) -> Port:
        """Raise `BadModel` unless every bound of the contract holds for inputs of ``ports``."""
        raise NotImplementedError


def check_array(name: str, t: Values, dtype: type, shape: tuple[int, ...]) -> None:
    if not isinstance(t, np.ndarray) or t.dtype != dtype or t.shape != shape:
        found = None if t is None else f"{t.dtype} {tuple(t.shape)}"
        raise BadModel(f"{name} must be {np.dtype(dtype)} {shape}, got {found}")


def largest(t: np.ndarray) -> int:
    """Largest magnitude of integers; of the least integer of a type, too."""
    return max(-int(t.min()), int(t.max()))


def check_range(name: str, lo: int, hi: int) -> None:
    if not -(2**15) <= lo <= 0 <= hi <= 2**16 - 1 or lo == hi:
        raise BadModel(f"{name} must have lo <= 0 <= hi within 16 bits, got [{lo}, {hi}]")


def check_fits(name: str, port: Port) -> None:
    """Raise `BadModel` for accumulators where the contract wants at most 17 bits."""
    if port.lo < -(2**15) or port.hi > 2**16 - 1:
        raise BadModel(f"{name} takes integers within 16 bits, got [{port.lo}, {port.hi}]")
