"""The closed set of operations that networks are made of, one file for each kind of thing."""

from .arrange import Concatenate, Shuffle, Slice, Unshuffle
from .attention import WindowAttention
from .base import Operation, Port, Rounding, round_ste
from .combine import Product, Sum
from .compensate import Compensate
from .convolution import Convolution
from .gain import Gain
from .gdn import DivisiveNormalization
from .layer_norm import LayerNorm
from .pointwise import Pointwise
from .requantize import Requantize

#: by the name that model files have for them
OPERATIONS: dict[str, type[Operation]] = {
    op.kind: op
    for op in (
        Convolution, Requantize, Compensate, DivisiveNormalization, Sum, Product, Concatenate, Slice, Shuffle,
        Unshuffle, Pointwise, LayerNorm, WindowAttention, Gain,
    )
}  # fmt: skip

__all__ = [
    "OPERATIONS",
    "Compensate",
    "Concatenate",
    "Convolution",
    "DivisiveNormalization",
    "Gain",
    "LayerNorm",
    "Operation",
    "Pointwise",
    "Port",
    "Product",
    "Requantize",
    "Rounding",
    "Shuffle",
    "Slice",
    "Sum",
    "Unshuffle",
    "WindowAttention",
    "round_ste",
]
