"""Quantizers of the latent: one object with ``quantize`` and ``dequantize`` each."""

from .scalar import FIXED_HI, FIXED_LO, FixedPointScalar, UniformScalar

__all__ = ["FIXED_HI", "FIXED_LO", "FixedPointScalar", "UniformScalar"]
